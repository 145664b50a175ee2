"""`patch_across_steps` against a plain loop of single interventions and grafts, and its figure."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import plateaulens as pl
from plateaulens.analysis import step_patching
from plateaulens.analysis.step_patching import patch_across_steps

TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
ATTENTIONS = pytest.mark.parametrize("attention", ["linear", "softmax"])
LAYERS = pytest.mark.parametrize("n_layers", [1, 2])
MAPS = "blocks.*.attn.hook_pattern"
STEPS = [0, 10, 30]


def config(attention="linear", n_layers=1, **fields):
    sizes = dict(d_model=16, n_heads=2, init_scale=8.0) | fields
    return pl.ModelConfig.for_task(TASK, attention=attention, n_layers=n_layers, **sizes)


class Suite:
    """Models of different seeds at the given steps; records which were loaded."""

    def __init__(self, cfg, steps=STEPS, seed=0):
        self.models = {step: pl.Transformer(replace(cfg, seed=seed + i)) for i, step in enumerate(steps)}
        self.steps, self.loaded = list(steps), []

    def model(self, step):
        self.loaded.append(step)
        return self.models[step]

    def __repr__(self):
        return "Suite()"


def one_by_one(run, batch, sites, metrics, parts=None, donor=None):
    """The grid by a plain loop: {name: [source target ...]}."""
    donor = donor or run
    rows = []
    for s in donor.steps:
        source = donor.model(s)
        row = []
        for t in run.steps:
            target = run.model(t)
            if parts is not None:
                row.append(pl.measure(pl.graft(target, source, parts), batch, metrics))
                continue
            cache = pl.trace(source, batch, sites).cache
            with pl.intervene(target, *(pl.Patch(site, value) for site, value in cache.items())):
                row.append(pl.measure(target, batch, metrics))
        rows.append(row)
    return {name: np.array([[cell[name].numpy() for cell in row] for row in rows]) for name in rows[0][0]}


def check(grid, expected):
    assert set(grid.data_vars) == set(expected)
    for name, values in expected.items():
        assert grid[name].dims[:2] == ("source", "target")
        np.testing.assert_allclose(grid[name].values, values, rtol=1e-4, atol=1e-5, err_msg=name)


# Metrics of the answer rows, of whole sequences, and of decoded answers.
METRICS = ["answer_loss", "sequence_log_prob", "loss", "collapse", "norm@blocks.0.hook_resid_mid", "accuracy"]
SITES = [[MAPS], ["blocks.0.mlp.hook_post"], ["blocks.0.attn.hook_k", "blocks.0.hook_resid_post"], ["*.hook_z"]]


@ATTENTIONS
@LAYERS
@pytest.mark.parametrize("sites", SITES, ids=" ".join)
def test_grid_equals_a_loop_of_single_patches(attention, n_layers, sites):
    run, batch = Suite(config(attention, n_layers)), TASK.sample(8, seed=3)
    grid = patch_across_steps(run, batch, sites, [*METRICS, "position_accuracy"], progress=False)
    check(grid, one_by_one(run, batch, sites, [*METRICS, "position_accuracy"]))
    assert len(np.unique(grid.answer_loss)) > 6, "the cells are equal, so the comparison tests nothing"


@ATTENTIONS
@LAYERS
@pytest.mark.parametrize("layer", [0, -1])
def test_pattern_of_one_layer_equals_fixed_attention(attention, n_layers, layer):
    run, batch = Suite(config(attention, n_layers)), TASK.sample(8, seed=3)
    layer, metrics = layer % n_layers, ["answer_loss", "tf_accuracy", "accuracy"]
    pattern = {s: pl.trace(run.model(s), batch, [MAPS]).pattern()[layer] for s in run.steps}
    grid = patch_across_steps(run, batch, f"blocks.{layer}.attn.hook_pattern", metrics, progress=False)
    for s in run.steps:
        for t in run.steps:
            with pl.intervene(run.model(t), pl.FixAttention(pattern[s], layer=layer)):
                one = pl.measure(run.model(t), batch, metrics)
            for name, value in one.items():
                assert float(grid[name].sel(source=s, target=t)) == pytest.approx(float(value), abs=1e-5)


@ATTENTIONS
@pytest.mark.parametrize("parts", ["attn", "mlp", ["qk", "embed"], "blocks.1.*"])
def test_grid_of_weights_equals_a_loop_of_grafts(attention, parts):
    run, batch = Suite(config(attention, n_layers=2)), TASK.sample(8, seed=3)
    before = {s: {n: p.clone() for n, p in run.model(s).named_parameters()} for s in run.steps}
    metrics = ["answer_loss", "accuracy", "position_accuracy"]
    grid = patch_across_steps(run, batch, metrics=metrics, parts=parts, progress=False)
    check(grid, one_by_one(run, batch, [], metrics, parts))
    assert all(torch.equal(p, before[s][n]) for s in run.steps for n, p in run.model(s).named_parameters())


def test_coordinates_and_diagonal_equal_the_untouched_models():
    run, batch = Suite(config()), TASK.sample(8, seed=3)
    metrics = ["answer_loss", "position_accuracy", "collapse"]
    grid = patch_across_steps(run, batch, metrics=metrics, sources=[30, 0], targets=[10, 30, 0], progress=False)
    assert grid.source.values.tolist() == [30, 0] and grid.target.values.tolist() == [10, 30, 0]
    for step in STEPS:
        plain = {name: value.numpy() for name, value in pl.measure(run.model(step), batch, metrics).items()}
        for name in metrics:
            np.testing.assert_allclose(grid[f"{name}_unpatched"].sel(target=step), plain[name], rtol=1e-5)
            if step != 10:
                np.testing.assert_allclose(grid[f"{name}_source"].sel(source=step), plain[name], rtol=1e-5)
                if name != "position_accuracy":  # decoded under teacher-forced maps, which are not its own
                    np.testing.assert_allclose(grid[name].sel(source=step, target=step), plain[name], rtol=1e-4)
    assert grid.attrs == {"what": MAPS, "prompts": 8}


def test_sources_can_come_from_another_run():
    run, donor = Suite(config()), Suite(config(d_mlp=48), steps=[5, 7], seed=8)  # same maps, another width
    batch = TASK.sample(8, seed=3)
    grid = patch_across_steps(run, batch, metrics=["answer_loss"], donor=donor, progress=False)
    check(grid, one_by_one(run, batch, [MAPS], ["answer_loss"], donor=donor))
    assert grid.source.values.tolist() == [5, 7] and grid.attrs["donor"] == "Suite()"
    alone = pl.measure(donor.model(7), batch, ["answer_loss"])["answer_loss"]
    assert float(grid.answer_loss_source.sel(source=7)) == pytest.approx(float(alone), abs=1e-5)


@pytest.mark.parametrize("bound", [0, 1 << 13, 1 << 30])
@pytest.mark.parametrize("metrics", [["answer_loss"], ["loss"]])
def test_memory_bounds_change_no_value(bound, metrics, monkeypatch):
    run, batch = Suite(config(), steps=range(5)), TASK.sample(8, seed=3)
    expected = one_by_one(run, batch, [MAPS], metrics)
    monkeypatch.setattr(step_patching, "PASS_BYTES", 20 * bound)
    monkeypatch.setattr(step_patching, "SOURCE_BYTES", bound)
    run.loaded.clear()
    check(patch_across_steps(run, batch, metrics=metrics, progress=False), expected)
    # Source 3 is read once, target 3 once for each group of sources.
    assert run.loaded.count(3) == {0: 6, 1 << 13: 4, 1 << 30: 2}[bound]


def test_stacked_sources_share_passes_and_the_prompt():
    run, batch = Suite(config(), steps=range(6)), TASK.sample(8, seed=3)
    rows = []
    handles = [
        m.embed.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape)) for m in run.models.values()
    ]
    patch_across_steps(run, batch, progress=False)
    for handle in handles:
        handle.remove()
    # Whole sequences: the first target untouched, and each source. The prompt and the answer rows: each target.
    assert sorted(shape[1] for shape in rows) == [4] * 12 + [8] * 7
    assert run.loaded.count(3) == 2


def test_metric_of_the_whole_batch_is_not_mixed_over_sources():
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    run, batch = Suite(config()), task.sample(8, seed=3)
    sites = ["blocks.0.attn.hook_q"]
    grid = patch_across_steps(run, batch, sites, ["attention_progress_global", "loss"], progress=False)
    check(grid, one_by_one(run, batch, sites, ["attention_progress_global", "loss"]))


def test_user_functions_and_user_hooks_run_whole_sequences():
    def mass(t):
        return t.cache["blocks.0.attn.hook_pattern"].abs().sum((1, 2, 3)) + t.answer_outputs.sum((1, 2))

    run, batch = Suite(config()), TASK.sample(8, seed=3)
    check(patch_across_steps(run, batch, metrics=[mass], progress=False), one_by_one(run, batch, [MAPS], [mass]))
    for model in run.models.values():  # a hook that does not know absolute positions
        model.blocks[0].hook_resid_pre.add_hook(lambda x, hook: torch.cat([-x[:, :1], x[:, 1:]], 1))
    check(
        patch_across_steps(run, batch, metrics=["answer_loss"], progress=False),
        one_by_one(run, batch, [MAPS], ["answer_loss"]),
    )


@pytest.mark.parametrize("n", [1, 2])
def test_grid_of_one_or_two_prompts(n):
    run, batch = Suite(config()), TASK.sample(n, seed=3)
    metrics = ["answer_loss", "loss", "accuracy"]
    check(patch_across_steps(run, batch, metrics=metrics, progress=False), one_by_one(run, batch, [MAPS], metrics))


def test_answers_of_different_lengths_are_averaged_where_they_exist():
    run, whole = Suite(config()), TASK.sample(8, seed=3)
    out = whole.answer_positions.clone()
    out[::3, 2:] = -1
    batch = pl.Batch(whole.tokens, out, whole.loss_mask, TASK)
    metrics = ["tf_accuracy", "answer_loss"]
    check(patch_across_steps(run, batch, metrics=metrics, progress=False), one_by_one(run, batch, [MAPS], metrics))


def test_bidirectional_attention_runs_whole_sequences():
    run, batch = Suite(config("softmax", attention_dir="bidirectional")), TASK.sample(8, seed=3)
    check(
        patch_across_steps(run, batch, metrics=["answer_loss"], progress=False),
        one_by_one(run, batch, [MAPS], ["answer_loss"]),
    )


@ATTENTIONS
def test_transformerlens_models_give_the_same_grid(attention):
    """A native bridge on 4.x, a HookedTransformer on 3.9: the grid of the model that they were made from."""
    run, batch, metrics = Suite(config(attention)), TASK.sample(8, seed=3), ["answer_loss", "accuracy"]
    converted = Suite(config(attention), steps=[])
    converted.models = {step: pl.to_tl(model) for step, model in run.models.items()}
    converted.steps = list(converted.models)
    grid = patch_across_steps(converted, batch, metrics=metrics, progress=False)
    check(grid, one_by_one(run, batch, [MAPS], metrics))


@pytest.mark.parametrize("more", [[], ["blocks.0.attn.hook_cos"]])  # a site that all prompts share
def test_grid_of_language_model_checkpoints(neox, more):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import GPTNeoXForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        hf = GPTNeoXForCausalLM(neox[0].config).eval()
    run = Suite(config(), steps=[])
    run.models = {0: neox[1], 512: build_bridge_from_module(hf, "GPTNeoXForCausalLM", hf_config=hf.config)}
    run.steps = list(run.models)
    batch = pl.Batch.prompts(torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(1)), n_new=3)
    metrics, sites = ["repetition", "collapse", "entropy"], [MAPS, *more]
    grid = patch_across_steps(run, batch, sites, metrics, progress=False)
    check(grid, one_by_one(run, batch, sites, metrics))
    assert len(np.unique(grid.collapse)) == 4


def test_grid_of_a_run_folder(tmp_path):
    models = Suite(config())
    run = pl.Run.create(tmp_path / "run", task=TASK, model=models.model(0), train=pl.TrainConfig(steps=30))
    for step in STEPS:
        run.save(step, models.model(step))
    batch = TASK.sample(8, seed=3)
    grid = pl.patch_across_steps(run, batch, metrics=["tf_accuracy", "position_accuracy"], sources=[30, 0])
    expected = one_by_one(run, batch, [MAPS], ["tf_accuracy"])["tf_accuracy"][[2, 0]]
    np.testing.assert_allclose(grid.tf_accuracy, expected, atol=1e-6)


def test_trace_checkpoints_of_a_bfloat16_model():
    half, batch = pl.Transformer(config("softmax")).bfloat16(), TASK.sample(8, seed=0)
    models = half, deepcopy(half).float()
    one, other = (
        pl.analysis.trace_checkpoints(SimpleNamespace(steps=[0], model=lambda step, m=m: m), batch) for m in models
    )
    np.testing.assert_allclose(one.pattern, other.pattern, atol=0.05)
    np.testing.assert_allclose(one.cosine, other.cosine, atol=0.05)


def test_run_without_checkpoints_raises():
    empty, batch = Suite(config(), steps=[]), TASK.sample(2, seed=0)
    for question in (pl.analysis.trace_checkpoints, pl.analysis.sharpness, patch_across_steps):
        with pytest.raises(ValueError, match=r"Suite\(\) has no checkpoints; record with save_every="):
            question(empty, batch)


def test_invalid_arguments_raise_in_one_line(tmp_path):
    run, batch = Suite(config()), TASK.sample(4, seed=0)
    empty = Suite(config(), steps=[])
    other = Suite(config(n_heads=4))
    deeper = Suite(config(n_layers=2))
    wide = Suite(config(d_model=32))
    cases = [
        (dict(run=empty), "no checkpoints; record with save_every="),
        (dict(donor=empty), "no checkpoints"),
        (dict(sites="blocks.0.attn.hook_patern"), "did you mean .*hook_pattern"),
        (dict(sites=[]), "at least one"),
        (dict(metrics=[]), "at least one"),
        (dict(metrics=["tf_acuracy"]), "did you mean 'tf_accuracy'"),
        (dict(parts="atn"), "unknown part .*did you mean 'attn'"),
        (dict(parts="attn", sites=MAPS), "not both"),
        (dict(sources=[11]), "source step 11 has no checkpoint in Suite.*nearest: 10, all: "),
        (dict(targets=[0, 400]), "target step 400 has no checkpoint"),
        (dict(sources=[]), "sources= is empty"),
        (dict(donor=other), r"hook_pattern is \[4, 4, 8, 8\] in the donor and \[4, 2, 8, 8\] in the run"),
        (dict(donor=deeper), "other sites in the donor"),
        (dict(donor=wide, parts="mlp"), "cannot graft 'mlp'"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            patch_across_steps(**dict(run=run, batch=batch, progress=False) | change)
        assert "\n" not in str(caught.value)


def test_step_grid_shows_every_pair_and_the_untouched_models():
    run, batch = Suite(config()), TASK.sample(8, seed=3)
    grid = patch_across_steps(run, batch, metrics=["tf_accuracy", "answer_loss"], sources=[10, 30], progress=False)
    figure = pl.plots.step_grid(grid)
    heat = figure.data[0]
    z = np.array(heat.z, dtype=float)
    assert z.shape == (2 + 2, 3 + 2)  # a gap, and the untouched models
    np.testing.assert_allclose(z[:2, :3], grid.tf_accuracy)
    np.testing.assert_allclose(z[3, :3], grid.tf_accuracy_unpatched)
    np.testing.assert_allclose(z[:2, 4], grid.tf_accuracy_source)
    assert np.isnan(z[2]).all() and np.isnan(z[:, 3]).all() and np.isnan(z[3, 4])
    shapes = figure.to_dict()["layout"]["shapes"]
    assert {(s["x0"], s["x1"], s["y0"], s["y1"]) for s in shapes} == {(1, 2, 0, 1), (2, 3, 1, 2)}  # steps 10 and 30
    assert heat.x == (0, 1, 2, 3, 3.3, 4.3) and heat.y == (0, 1, 2, 2.3, 3.3)
    assert figure.layout.xaxis.ticktext == ("0", "10", "30", "own") and figure.layout.yaxis.ticktext[1] == "30"
    hover = heat.text[0, 2]
    assert "step 10" in hover and "step 30" in hover and f"{float(grid.tf_accuracy[0, 2]):.3g}" in hover
    losses = pl.plots.step_grid(grid, "answer_loss")
    assert "answer_loss" in losses.layout.title.text and losses.data[0].zmax != 1
    with pytest.raises(ValueError, match="did you mean 'answer_loss'"):
        pl.plots.step_grid(grid, "answer_los")


def test_step_grid_refuses_several_values_a_cell():
    run, batch = Suite(config()), TASK.sample(8, seed=3)
    grid = patch_across_steps(run, batch, metrics=["position_accuracy"], progress=False)
    with pytest.raises(ValueError, match="choose one: dataset.isel"):
        pl.plots.step_grid(grid)
    assert np.array(pl.plots.step_grid(grid.isel(position_accuracy_entry=1)).data[0].z).shape == (5, 5)
