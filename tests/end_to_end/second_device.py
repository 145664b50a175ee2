"""What runs on a CPU runs on another device, to the same numbers: nothing mixes the two."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import plateaulens as pl
from helpers import INTERVENTION_CASES, WINDOW_SUM, small_transformer
from plateaulens.metrics.named import STATE_METRICS
from plateaulens.models.config import bert
from plateaulens.papers.matrix_completion.cell_probes import probe_cells
from plateaulens.papers.matrix_completion.copy_check import copy_check
from plateaulens.papers.matrix_completion.embeddings import (
    permute_positions,
    position_embeddings,
    token_embeddings,
)
from plateaulens.papers.matrix_completion.head_ablation import head_ablations
from plateaulens.papers.matrix_completion.head_atlas import head_atlas
from plateaulens.papers.matrix_completion.negated_patching import patch_negated
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.papers.matrix_completion.out_of_distribution import evaluate_ood
from plateaulens.papers.matrix_completion.part_swapping import swap_parts
from plateaulens.papers.quiet_features import recipes as quiet
from plateaulens.tasks import TASKS
from pretended_device import DEVICE, NAME, elsewhere

CPU = torch.device("cpu")
SITE = "blocks.0.hook_resid_post"
ADDITION = pl.tasks.BinaryAddition(bits=3)
MATRICES = pl.tasks.MatrixCompletion(rows=3, cols=3, rank=1, precision=0.1, limit=2.0)
SMALL = {  # what is too large by default
    "permutation": pl.tasks.Permutation(n=4),
    "matrix-completion": MATRICES,
    "matrix": MATRICES,
}


def both(work):
    """`work(device)` on the CPU and elsewhere: the same numbers, however they are wrapped."""
    expected = plain(work(CPU))
    with elsewhere() as device:
        got = plain(work(device))
    assert got.keys() == expected.keys() and expected
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def plain(x, name=""):
    """Arrays by name."""
    if isinstance(x, torch.Tensor):
        return {name: x.detach().cpu().float().numpy()}
    if isinstance(x, xr.Dataset):
        return {f"{name}{key}": v.values for key, v in x.items() if v.dtype.kind in "fib"}
    if isinstance(x, xr.DataArray | pd.DataFrame | pd.Series):
        return {name: x.values}
    if isinstance(x, dict):
        return {key: value for k, v in x.items() for key, value in plain(v, f"{name}{k}.").items()}
    if isinstance(x, list | tuple):
        return plain(dict(enumerate(x)), name)
    return {name: np.asarray(x)}


def model_of(task, device, seed=0, **fields):
    sizes = dict(d_model=16, n_heads=2, n_layers=2, init_scale=4.0, seed=seed)
    return pl.Transformer(pl.ModelConfig.for_task(task, **sizes | fields)).to(device)


def of_matrices(device, seed=0):
    return pl.Transformer(pl.ModelConfig.for_task(MATRICES, **bert(16, 2, 2), seed=seed)).to(device)


def run_of(task, device):
    """Three checkpoints there."""
    return SimpleNamespace(steps=[0, 1, 2], model=lambda step: model_of(task, device, seed=step))


def test_the_other_device_keeps_its_tensors_apart():
    with elsewhere() as device:
        there = torch.ones(3, device=device)
        assert there.device == DEVICE and there.cpu().device == CPU and (there + 1.0).device == DEVICE
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there.numpy())
        linear = torch.nn.Linear(3, 1).to(device)
        linear(there).sum().backward()
        assert linear.weight.grad.device.type == NAME


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_drawn_scored_and_explained_there(name):
    recipe = quiet.RECIPES.get(name)
    task = SMALL.get(name) or (recipe.task if recipe else TASKS[name]())

    def work(device):
        batch = task.sample(3, seed=0, device=device)
        assert batch.tokens.device == batch.answer_positions.device == batch.loss_mask.device == device
        features = task.features(batch) if type(task).features is not pl.tasks.Task.features else {}
        maps = [m for m in task.optimal_attention(batch) or () if m is not None]
        return [batch.tokens, batch.targets, batch.answers, maps, {k: f.labels for k, f in features.items()}]

    both(work)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_training_there_is_training_here(optimizer):
    more = {"momentum": 0.9} if optimizer == "sgd" else {}
    cfg = pl.TrainConfig(steps=4, batch_size=8, lr=1e-3, grad_clip=1.0, warmup=2, optimizer=optimizer, **more)

    def work(device):
        training = pl.train(model_of(WINDOW_SUM, device), WINDOW_SUM, cfg)
        losses = [step.loss for step in training if step.loss is not None]
        assert all(p.device == device for p in training.model.parameters())
        return {"losses": torch.stack(losses), **training.model.state_dict()}

    both(work)


def test_a_run_is_recorded_and_goes_on_there(tmp_path):
    cfg, eval_batch = pl.TrainConfig(steps=4, batch_size=8, lr=1e-3), WINDOW_SUM.sample(8, seed=1)

    def work(device):
        path = tmp_path / device.type
        kind = dict(every=2, save_every=2, progress=False)
        run = pl.record(pl.train(model_of(WINDOW_SUM, device), WINDOW_SUM, cfg), path, eval_batch, **kind)
        assert run.config["device"].startswith(device.type) and run.model(2, device).W_E.device == device
        more = pl.train(model_of(WINDOW_SUM, device, 1), WINDOW_SUM, replace(cfg, steps=6))
        more.load_state_dict(run.rewind())
        for _ in more:
            pass
        return {**more.model.state_dict(), "loss": run.metrics.loss}

    both(work)


@pytest.mark.parametrize(
    "task", [WINDOW_SUM, pl.tasks.Permutation(n=4), pl.tasks.PrefixSum(n=4, p=5), ADDITION], ids=repr
)
def test_every_measurement_there(task):
    batch = task.sample(8, seed=1)
    names = [
        *pl.metrics.default_metrics(batch, model_of(task, CPU)),
        *(f"{m}@*" for m in STATE_METRICS),
        "sequence_log_prob",
        "rep@2",
    ]
    names += ["tf_exact_match", "prediction_entropy", "attention_sink", "alpha_1"]
    both(lambda device: pl.measure(model_of(task, device), batch, names, reduce=None))


@pytest.mark.parametrize("name", INTERVENTION_CASES)
def test_every_intervention_there(name):
    """Whatever tensors it was made with."""
    batch = WINDOW_SUM.sample(3, seed=0)

    def work(device):
        model = small_transformer("softmax").to(device)
        with pl.intervene(model, INTERVENTION_CASES[name][0]):
            return pl.measure(model, batch, ["loss", "accuracy"], reduce=None)

    both(work)


def test_interventions_act_in_training_there():
    def work(device):
        model = model_of(WINDOW_SUM, device)
        with pl.intervene(model, pl.OptimalAttention(WINDOW_SUM), pl.Freeze("mlp")):
            training = pl.train(model, WINDOW_SUM, pl.TrainConfig(steps=3, batch_size=8, lr=1e-3))
            return torch.stack([step.loss for step in training if step.loss is not None])

    both(work)


PROBED = {
    "binary": ("carry", {}),
    "one C": ("carry", {"C": 1.0}),
    "pooled": ("carry", {"pooled": True}),
    "hidden": ("carry", {"hidden": 2, "C": 0.1}),
    "classes": (lambda b: pl.tasks.Feature(b.tokens[:, :2], b.answer_positions[:, :2], "classes"), {}),
    "classes, hidden": (
        lambda b: pl.tasks.Feature(b.tokens[:, :2], b.answer_positions[:, :2], "classes"),
        {"hidden": 2, "C": 0.1},
    ),
    "numbers": (lambda b: pl.tasks.Feature(b.tokens[:, :2].float(), b.answer_positions[:, :2], "real"), {}),
    "numbers, hidden": (
        lambda b: pl.tasks.Feature(b.tokens[:, :2].float(), b.answer_positions[:, :2], "real"),
        {"hidden": 2, "C": 0.1},
    ),
}


@pytest.mark.parametrize("name", PROBED)
def test_probes_of_a_model_elsewhere_are_fitted_on_the_cpu(name):
    feature, options = PROBED[name]
    deep = "hidden" in options
    batch = ADDITION.sample(40 if deep else 200, seed=1)

    def work(device):
        asked = feature if isinstance(feature, str) else feature(batch)
        model, baseline = model_of(ADDITION, device), None if deep else model_of(ADDITION, device, 1)
        found = pl.probe(model, batch, asked, SITE, baseline=baseline, shuffled=not deep, **options)
        weights = (found.fit.outer if deep else found.fit).weights
        assert weights.device == CPU  # scikit-learn fits there, wherever the model is
        return found.table[["loss", "train_loss", "shuffled", "baseline"]]

    both(work)


def test_probes_over_steps_start_from_the_last_there():
    batch = ADDITION.sample(200, seed=1)
    both(
        lambda device: pl.probe_checkpoints(run_of(ADDITION, device), batch, ["carry"], progress=False)[
            ["loss", "baseline"]
        ]
    )


@pytest.mark.parametrize("method", ["hyperplane", "nullspace", "mean_difference"])
def test_features_are_ablated_there(method):
    batch, train = ADDITION.sample(32, seed=1), ADDITION.sample(200, seed=2)

    def work(device):
        model, options = model_of(ADDITION, device), dict(train=train, k=2, draws=2, progress=False)
        probes = pl.probe(model, train, "carry", C=1.0)
        given = pl.ablate_feature(model, batch, "carry", probes, method=method, metrics=["loss"], **options)
        fitted = pl.ablate_feature(model, batch, "carry", sites=SITE, method=method, metrics=["loss"], **options)
        return [given.values[["intact", "ablated", "controls"]], fitted.values[["ablated", "controls"]]]

    both(work)


def test_activations_are_patched_there():
    clean, corrupted = WINDOW_SUM.sample(6, seed=1), WINDOW_SUM.sample(6, seed=2)

    def work(device):
        model = model_of(WINDOW_SUM, device)
        grid = pl.activation_patching(model, clean, corrupted, "resid_pre", progress=False)
        paths = pl.analysis.path_patching(model, clean, corrupted, [(1, "k", 0)], progress=False)
        return [grid, paths]

    both(work)


def test_steps_are_patched_into_steps_there():
    batch = WINDOW_SUM.sample(6, seed=1)

    def work(device):
        run = run_of(WINDOW_SUM, device)
        found = [
            pl.patch_across_steps(run, batch, what, ("tf_accuracy", "loss", "prediction_entropy"), progress=False)
            for what in (SITE, "blocks.1.attn.hook_z")
        ]
        grafts = pl.patch_across_steps(run, batch, parts="attn", metrics=("loss",), progress=False)
        evolved = pl.analysis.trace_checkpoints(run, batch)
        return [*found, grafts, evolved.pattern, evolved.cosine, pl.analysis.sharpness(run, batch)]

    both(work)


def test_matrices_are_looked_into_there():
    batch = MATRICES.sample(32, seed=1)

    def work(device):
        model, other = of_matrices(device), of_matrices(device, 1)
        run = SimpleNamespace(steps=[0, 1], model=lambda step: of_matrices(device, step))
        return [
            pl.measure(model, batch, ["loss", "observed_loss", "masked_loss", "masked_size"], reduce=None),
            head_atlas(model, batch),
            head_ablations(model, batch),
            patch_negated(model, batch, by_head=True),
            swap_parts(model, other, batch),
            copy_check(run, batch),
            probe_cells(model, MATRICES.sample(90, seed=2)),
            token_embeddings(model)[["norm", "explained"]],
            position_embeddings(model, 3, 3)[["explained"]],
            permute_positions(model, batch, repeats=2),
            evaluate_ood(model, {1: MATRICES}, n=8, seed=3),
        ]

    both(work)


def test_the_nuclear_norm_is_minimised_there():
    batch = MATRICES.sample(5, seed=1)
    shape = (5, 3, 3)
    values, observed = batch.values.view(shape), batch.observed.view(shape)
    both(lambda device: complete_by_nuclear_norm(values.to(device), observed.to(device)))


def test_language_models_are_measured_there(neox):
    """Prompts of unequal length, without the hooks of the bridge and with them."""
    from copy import deepcopy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    rng = torch.Generator().manual_seed(0)
    prompts = pl.Batch.prompts([torch.randint(1, 50, (n,), generator=rng).tolist() for n in (3, 7, 7, 5)], 4)

    def work(device):
        hf = deepcopy(neox[0]).to(device)
        bridge = build_bridge_from_module(hf, "GPTNeoXForCausalLM", hf_config=hf.config)
        plain_values = pl.measure(bridge, prompts, pl.lm.DEFAULT_METRICS, reduce=None)
        with pl.intervene(bridge, pl.AblateHeads([(1, 0)], "zero")):
            changed = pl.measure(bridge, prompts[1:3], ["collapse", "repetition"], reduce=None)
        return [plain_values, changed]

    both(work)
