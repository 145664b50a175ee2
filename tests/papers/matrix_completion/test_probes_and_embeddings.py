"""Cell probes, embeddings, single components, other distributions, against numpy, scikit-learn and planted results."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import TypeCheckError

import plateaulens as pl
from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.models.config import bert
from plateaulens.models.parameter_groups import parameters_of
from plateaulens.papers.matrix_completion.cell_probes import probe_cells
from plateaulens.papers.matrix_completion.completions import completions
from plateaulens.papers.matrix_completion.component_training import (
    COMPONENTS,
    PARTS,
    component_recipes,
    train_components,
)
from plateaulens.papers.matrix_completion.embeddings import (
    permute_positions,
    position_embeddings,
    principal_axes,
    token_embeddings,
    token_progress,
    token_values,
    variance_share,
)
from plateaulens.papers.matrix_completion.head_atlas import head_atlas
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.papers.matrix_completion.out_of_distribution import evaluate_ood
from plateaulens.papers.matrix_completion.recipes import RECIPES, SMALL_RECIPES
from plateaulens.papers.recipe import Recipe
from plateaulens.probing.datasets import ProbeConfig, ProbeSplit
from plateaulens.probing.probes import probe, probe_checkpoints

TASK = pl.tasks.MatrixCompletion(rows=3, cols=4, rank=1, factors="bounded", precision=0.1, limit=1.0)
AFTER = "blocks.1.hook_normalized_resid_post"
PLAIN = {"bias": False, "C": np.inf, "pooled": True, "shuffled": False, "fractions": (0.8, 0.0, 0.2)}


def rng(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    """Weights large enough that states differ."""
    model = pl.Transformer(pl.ModelConfig.for_task(TASK, **bert(16, 2, 4)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng(1)) * 0.3)
        model.W_E[0] = 0
    return model


@pytest.fixture(scope="module")
def batch():
    return TASK.sample(300, seed=0)


# Features of real numbers.


def everywhere(labels):
    return pl.tasks.Feature(labels, torch.arange(labels.shape[1]).expand(len(labels), -1), "real")


def test_features_equal_numpys_cell_by_cell(batch):
    known = TASK.features(batch)
    matrices, shown = batch.values.view(-1, 3, 4), batch.observed.view(-1, 3, 4)
    for name, feature in known.items():
        assert feature.kind == "real" and torch.equal(feature.positions, torch.arange(12).expand(300, -1)), name
    for k in range(20):
        u = np.linalg.svd(matrices[k].double().numpy())[0][:, 0]
        u = u * np.sign(u[np.isclose(np.abs(u), np.abs(u).max()).argmax()])
        for cell in range(12):
            i, j = divmod(cell, 4)
            assert known["element"].labels[k, cell] == matrices[k, i, j]
            assert known["row"].labels[k, cell].tolist() == [
                float(matrices[k, i, c]) if shown[k, i, c] else 0.0 for c in range(4)
            ]
            np.testing.assert_allclose(known["svd"].labels[k, cell], u, atol=1e-6)
            torch.testing.assert_close(known["svd_any_sign"].labels[k, cell].abs(), known["svd"].labels[k, cell].abs())
    flipped = (known["svd"].labels != known["svd_any_sign"].labels).any(-1)
    assert 0 < flipped.float().mean() < 1


def test_labels_of_another_kind_are_refused(batch, model):
    positions = torch.arange(12).expand(300, -1)
    with pytest.raises(ValueError, match="do not fit positions"):
        pl.tasks.Feature(torch.zeros(300, 12, 2, 2), positions, "real")
    with pytest.raises(ValueError, match="do not fit positions"):
        pl.tasks.Feature(torch.zeros(300, 12, 2), positions, "integer")
    with pytest.raises((TypeCheckError, ValueError)):
        pl.tasks.Feature(torch.zeros(300, 12, 2, dtype=torch.complex64), positions, "real")
    with pytest.raises(ValueError, match="not finite"):
        probe(model, batch, everywhere(torch.full((300, 12), torch.nan)), AFTER)
    with pytest.raises(ValueError, match="bias=False is for least squares"):
        probe(model, batch, pl.tasks.Feature((batch.values > 0).long(), positions), AFTER, bias=False)
    with pytest.raises(ValueError, match="keeps its biases"):
        probe(model, batch, "element", AFTER, hidden=3, bias=False)
    with pytest.raises(ValueError, match="unknown feature"):
        probe_cells(model, batch, ["elements"])


@pytest.mark.parametrize("bias", [True, False])
def test_pooled_probe_equals_numpys_least_squares(model, batch, bias):
    found = probe(model, batch, "row", AFTER, **PLAIN | {"bias": bias})
    x, y = pl.trace(model, batch, [AFTER]).cache[AFTER].double(), TASK.features(batch)["row"].labels.double()
    if bias:
        x = F.pad(x, (0, 1), value=1.0)
    test = ProbeSplit.of(torch.arange(300), ProbeConfig(fractions=(0.8, 0.0, 0.2), C=np.inf)).test
    train = torch.tensor(sorted(set(range(300)) - set(test.tolist())))
    w = np.linalg.lstsq(x[train].flatten(0, 1).numpy(), y[train].flatten(0, 1).numpy(), rcond=1e-5)[0]
    guess, truth = x[test] @ torch.tensor(w), y[test]
    cosine = F.cosine_similarity(guess, truth, dim=-1)
    errors = (guess - truth).square().mean(-1)
    table = found.table.isel(site=0)
    assert float(table.loss.mean()) == pytest.approx(errors.mean().item(), rel=1e-4)
    np.testing.assert_allclose(table.loss, errors.mean(0), rtol=1e-4)
    train_errors = (x[train] @ torch.tensor(w) - y[train]).square().mean()
    assert float(table.train_loss.mean()) == pytest.approx(train_errors.item(), rel=1e-4)
    assert float(table.cosine.mean()) == pytest.approx(cosine.mean().item(), abs=1e-4)
    assert float(table.absolute_cosine.mean()) == pytest.approx(cosine.abs().mean().item(), abs=1e-4)
    shown = batch.observed
    for some in (shown, ~shown):
        assert found.loss_where(some)[0] == pytest.approx(errors[some[test]].mean().item(), rel=1e-4)
    biases = found.biases
    assert (biases != 0).all() if bias else (biases == 0).all()


def test_planted_targets_are_found_and_noise_is_not(model, batch):
    x = pl.trace(model, batch, [AFTER]).cache[AFTER]
    planted = everywhere(x @ torch.randn(16, 5, generator=rng(2)))
    noise = everywhere(torch.randn(300, 12, 3, generator=rng(3)))
    zero = everywhere(torch.zeros(300, 12, 3).index_fill(1, torch.tensor([0]), 1.0))  # 0 at all but the first cell
    found = probe(model, batch, planted, AFTER, **PLAIN).table
    assert float(found.loss.max()) < 1e-8 and float(found.cosine.min()) > 0.9999 and float(found.r2.min()) > 0.9999
    found = probe(model, batch, noise, AFTER, **PLAIN).table
    assert 0.9 < float(found.loss.mean()) < 1.1 and abs(float(found.cosine.mean())) < 0.15
    found = probe(model, batch, zero, AFTER, **PLAIN).table.isel(site=0)
    assert float(found.absolute_cosine.max()) <= 1 / 12 + 1e-6  # a target of 0 counts as 0


def test_real_numbers_are_probed_over_steps_shuffled_and_by_hidden_layers(model, batch):
    other = pl.Transformer(model.cfg)
    run = SimpleNamespace(steps=[0, 1], model=lambda step: [other, model][step])
    over = probe_checkpoints(run, batch, ["element", "row"], AFTER, **PLAIN | {"shuffled": True}, progress=False)
    alone = probe(model, batch, "row", AFTER, baseline=other, **PLAIN | {"shuffled": True}).table
    for name in ("loss", "absolute_cosine", "baseline"):
        np.testing.assert_allclose(over[name].sel(feature="row", step=1), alone[name], rtol=1e-5)
    assert over.cosine.sel(feature="element").isnull().all() and over.cosine.sel(feature="row").notnull().all()
    assert float(over.shuffled.sel(feature="element", step=1).mean()) == pytest.approx(TASK.variance, rel=0.15)
    x = pl.trace(model, batch, [AFTER]).cache[AFTER]
    bent = everywhere(((x - x.mean((0, 1))) @ torch.randn(16, 1, generator=rng(2)))[..., 0].abs())
    straight, curved = (
        float(probe(model, batch, bent, AFTER, hidden=h, C=1e4, pooled=True, shuffled=False).table.r2.mean())
        for h in (None, 16)
    )
    assert curved > 0.95 > straight


def test_models_of_16_bits_are_looked_into(model):
    half = deepcopy(model).to(torch.bfloat16)
    run, batch = SimpleNamespace(steps=[0], model=lambda step: half), TASK.sample(40, seed=1)
    rounded = deepcopy(half).float()  # the very same weights
    np.testing.assert_allclose(token_embeddings(half).norm, token_embeddings(rounded).norm)
    np.testing.assert_allclose(position_embeddings(half, 3, 4).norm, position_embeddings(rounded, 3, 4).norm)
    np.testing.assert_allclose(head_atlas(half, batch).mass, head_atlas(rounded, batch).mass, atol=0.02)
    said = completions(run, batch).predicted.isel(step=0).values.reshape(40, -1)
    np.testing.assert_allclose(said, pl.trace(rounded, batch, ["outputs"]).outputs, atol=0.1)
    losses = [permute_positions(m, batch).loss.values for m in (half, rounded)]
    np.testing.assert_allclose(*losses, rtol=0.1)


def test_probe_cells_gives_losses_of_probes_and_of_predicting_0(model):
    batch = TASK.sample(2000, seed=3)
    found = probe_cells(model, batch)
    assert list(found.feature.values) == ["element", "row", "svd", "svd_any_sign"]
    assert list(found.site.values) == [f"blocks.{i}.hook_normalized_resid_post" for i in range(2)]
    zero = found.zero_loss
    assert zero.sel(feature="element").item() == pytest.approx(TASK.variance, rel=0.1)
    assert zero.sel(feature="row").item() == pytest.approx(0.7 * TASK.variance, rel=0.1)
    for name in ("svd", "svd_any_sign"):
        assert zero.sel(feature=name).item() == pytest.approx(1 / 3, rel=1e-5)
    direct = probe(
        model, batch, "svd", "blocks.*.hook_normalized_resid_post", **PLAIN | {"fractions": (8 / 9, 0.0, 1 / 9)}
    )
    np.testing.assert_allclose(found.loss.sel(feature="svd"), direct.table.loss.mean("offset"), rtol=1e-6)
    element = found.sel(feature="element")
    assert found.sel(feature=["row", "svd"]).absolute_cosine.notnull().all() and element.cosine.isnull().all()
    test = ProbeSplit.of(torch.arange(2000), ProbeConfig(fractions=(8 / 9, 0.0, 1 / 9), C=np.inf)).test
    token = probe_cells(model, batch, ["element"], "hook_embed").isel(feature=0, site=0)
    hidden = batch.values[test][~batch.observed[test]]
    assert token.masked_loss.item() == pytest.approx(hidden.square().mean().item())  # MASK is 0, and so is the guess
    assert token.observed_loss.item() < 0.5 * token.masked_loss.item()
    figure = pl.papers.matrix_completion.plots.cell_probes(found)
    lines = {trace.name: list(trace.y) for trace in figure.data if trace.xaxis == "x"}
    np.testing.assert_allclose(lines["row"], found.loss.sel(feature="row") / zero.sel(feature="row"))
    np.testing.assert_allclose(lines["element, masked cells"], element.masked_loss / element.zero_loss)
    with pytest.raises(ValueError, match="got no feature to probe for"):
        probe_cells(model, batch, [])
    with pytest.raises(ValueError, match="one step"):
        pl.papers.matrix_completion.plots.cell_probes(found.expand_dims(step=[0]))


# Embeddings.


def with_embeddings(**named):
    """Something with embeddings, and nothing else."""
    return SimpleNamespace(**{name: torch.tensor(x).float() for name, x in named.items()})


def test_token_values_selects_a_range_of_magnitudes():
    assert token_values(TASK, 0.8) == {1: -1.0, 2: -0.9, 3: -0.8, 19: 0.8, 20: 0.9, 21: 1.0}
    assert token_values(TASK, max_size=0.1) == {10: -0.1, 11: 0.0, 12: 0.1}
    paper = token_values(pl.tasks.MatrixCompletion(), max_size=1.5)
    assert len(paper) == 301 and min(paper) == 851 and max(paper) == 1151 and paper[1045] == 0.44


def test_symmetry_and_components_of_planted_embeddings():
    values = {t: v for t, v in enumerate(np.linspace(-1, 1, 21).round(6).tolist())}
    v = np.array(list(values.values()))
    direction, other = np.eye(6)[2], np.eye(6)[4]
    found = token_embeddings(
        with_embeddings(W_E=3 * np.sign(v)[:, None] * direction + np.abs(v)[:, None] * other), values
    )
    assert found.symmetry.item() == pytest.approx(1) and found.explained.sum().item() == pytest.approx(1)
    np.testing.assert_allclose(found.norm, np.sqrt(9 * np.sign(v) ** 2 + v**2), rtol=1e-5)
    first, second = found.component.values.T
    np.testing.assert_allclose(np.abs(np.corrcoef(first, np.sign(v))[0, 1]), 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.corrcoef(second, np.abs(v))[0, 1]), 1, atol=1e-6)
    lopsided = token_embeddings(with_embeddings(W_E=(2 + v)[:, None] * direction), values)
    assert lopsided.symmetry.item() == pytest.approx(-1)
    assert np.isnan(token_embeddings(with_embeddings(W_E=np.eye(5))).symmetry)  # no token stands for -v
    for values in ({}, {3: 0.5}):
        with pytest.raises(ValueError, match=f"at least 2 tokens, got {len(values)}"):
            token_embeddings(with_embeddings(W_E=np.eye(5)), values)
    figure = pl.papers.matrix_completion.plots.token_embeddings(found)
    drawn = {(x, y) for trace in figure.data if trace.xaxis == "x" for x, y in zip(trace.x, trace.y)}
    assert drawn == set(zip(v.tolist(), found.norm.values.tolist()))


def test_principal_axes_equal_scikit_learns():
    from sklearn.decomposition import PCA

    x = torch.randn(30, 7, generator=rng(0)).numpy() * np.arange(1, 8)
    axes, shares = principal_axes(x)
    theirs = PCA(2).fit(x)
    np.testing.assert_allclose(np.abs(axes), np.abs(theirs.components_), atol=1e-5)
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, rtol=1e-5)


def test_progress_uses_the_last_steps_axes_without_centering():
    every = [torch.randn(8, 5, generator=rng(i)) for i in range(3)]
    run = SimpleNamespace(steps=[0, 5, 10], model=lambda step: SimpleNamespace(W_E=every[step // 5]))
    found = token_progress(run, {3: 0.5, 4: -0.5, 6: 1.0})
    axes, _ = principal_axes(every[2][[3, 4, 6]].numpy())
    assert found.dims == ("step", "token", "axis") and found.value.values.tolist() == [0.5, -0.5, 1.0]
    for i, step in enumerate(run.steps):
        np.testing.assert_allclose(found.sel(step=step), every[i][[3, 4, 6]].numpy() @ axes.T, rtol=1e-4, atol=1e-6)
    assert token_progress(run, steps=[0, 10]).sizes == {"step": 2, "token": 8, "axis": 2}
    assert {trace.xaxis for trace in pl.papers.matrix_completion.plots.token_progress(found).data} == {"x", "x2", "x3"}


def test_variance_share_equals_an_analysis_of_variance():
    x, groups = torch.randn(24, 1, generator=rng(0)).numpy(), np.arange(24) % 4
    own = [x[groups == g, 0] for g in range(4)]
    within = sum(np.square(o - o.mean()).sum() for o in own)
    assert variance_share(x, groups) == pytest.approx(1 - within / np.square(x - x.mean()).sum())
    assert variance_share(groups[:, None] * [1.0, 2.0], groups) == pytest.approx(1)
    random = [variance_share(torch.randn(24, 9, generator=rng(i)).numpy(), groups) for i in range(60)]
    assert np.mean(random) == pytest.approx(3 / 23, rel=0.1)  # the chance that is given beside


def test_planted_columns_explain_position_embeddings():
    columns = torch.randn(4, 8, generator=rng(0)).repeat(5, 1) + 0.01 * torch.randn(20, 8, generator=rng(1))
    found = position_embeddings(with_embeddings(W_pos=columns.tolist()), 5, 4)
    assert found.explained.sel(group="col").item() > 0.99 and found.explained.sel(group="row").item() < 0.01
    assert found.chance.values.tolist() == [4 / 19, 3 / 19]
    np.testing.assert_allclose(found.norm, columns.norm(dim=1), rtol=1e-5)
    near = np.linalg.norm(found.component.values[:, None] - found.component.values, axis=-1)
    np.fill_diagonal(near, np.inf)
    assert (near.argmin(1) % 4 == np.arange(20) % 4).all()  # t-SNE's nearest neighbor is of the same column
    again = position_embeddings(with_embeddings(W_pos=columns.tolist()), 5, 4)
    xr.testing.assert_equal(found, again)
    with pytest.raises(ValueError, match="3 x 7 are 21 positions; the model has 20"):
        position_embeddings(with_embeddings(W_pos=columns.tolist()), 3, 7)
    with pytest.raises(ValueError, match="has no W_pos"):
        position_embeddings(with_embeddings(W_E=np.eye(3)), 1, 3)
    heat = next(
        trace for trace in pl.papers.matrix_completion.plots.position_embeddings(found).data if trace.type == "heatmap"
    )
    np.testing.assert_allclose(heat.z, columns.norm(dim=1).view(5, 4), rtol=1e-5)
    run = SimpleNamespace(steps=[0, 9], model=lambda step: with_embeddings(W_pos=columns.tolist()))
    over = map_checkpoints(run, lambda model: position_embeddings(model, 5, 4))
    drawn = {trace.name: list(trace.y) for trace in pl.papers.matrix_completion.plots.position_embeddings(over).data}
    assert drawn["explained by col"] == [found.explained.sel(group="col").item()] * 2


def test_tsne_of_49_positions_equals_scikit_learns_default():
    from sklearn.manifold import TSNE

    x = torch.randn(49, 8, generator=rng(0))
    theirs = TSNE(init="pca", random_state=0).fit_transform(x.double().numpy())
    found = position_embeddings(with_embeddings(W_pos=x.tolist()), 7, 7)
    np.testing.assert_allclose(found.component, theirs, rtol=1e-3, atol=1e-3)


def test_permuted_positions_equal_permuted_weights(model, batch):
    found = permute_positions(model, batch, repeats=2, seed=4)
    names = ["loss", "observed_loss", "masked_loss"]
    for name, value in pl.measure(model, batch, names).items():
        assert found.loc["intact", name] == pytest.approx(value.item())
    orders, generator = [], rng(4)
    for i in range(2):
        orders.append(torch.randperm(12, generator=generator))
        other = pl.graft(model, model, "pos")
        other.pos_embed.W_pos.data.copy_(model.W_pos[orders[i]])
        for name, value in pl.measure(other, batch, names).items():
            assert found.loc[i, name] == pytest.approx(value.item(), rel=1e-5)
    assert not torch.equal(*orders) and list(found.index) == ["intact", 0, 1]


# Single components.


def test_every_parameter_is_in_exactly_one_part():
    model = pl.Transformer(SMALL_RECIPES["matrix"].model_config())
    owned = [name for part in PARTS for name in parameters_of(model, part)]
    assert sorted(owned) == sorted(dict(model.named_parameters()))
    for name, recipe in component_recipes(RECIPES["matrix"]).items():
        assert recipe.optimal and set(recipe.frozen) | set(COMPONENTS[name]) == set(PARTS)
        assert recipe.task == RECIPES["matrix"].task and recipe.train == RECIPES["matrix"].train
        assert not set(recipe.frozen) & set(COMPONENTS[name])


def test_component_starts_at_initial_weights_and_alone_changes(tmp_path):
    train = pl.TrainConfig(steps=6, batch_size=8, lr=0.01)
    recipe = Recipe(task=TASK, model=bert(8, 1, 2), train=train)
    options = {"eval_batch": TASK.sample(8, seed=1), "every": 1, "save_every": 2, "progress": False}
    donor = recipe.record(tmp_path / "whole", **options)
    trained = train_components(recipe, donor, tmp_path / "parts", steps=4, **options)
    assert list(trained) == list(COMPONENTS) and all(run.steps == [0, 2, 4] for run in trained.values())
    final, fresh = donor.model(6), pl.Transformer(recipe.model_config(1))
    for name, run in trained.items():
        own = set(parameters_of(final, COMPONENTS[name]))
        for parameter, value in run.model(0).named_parameters():
            assert torch.equal(value, (fresh if parameter in own else final).get_parameter(parameter)), parameter
        for parameter, value in run.model(4).named_parameters():
            moved = not torch.equal(value, run.model(0).get_parameter(parameter))
            # A key's bias adds the same to all scores of a query, and softmax takes no notice.
            assert moved == (parameter in own) or parameter.endswith("k.bias"), parameter
    assert (tmp_path / "parts" / "token-embeddings" / "run.json").exists()
    again = train_components(recipe, donor, tmp_path / "parts", ["mlp"], steps=4, **options)
    assert again["mlp"].path == trained["mlp"].path
    with pytest.raises(ValueError, match="did you mean 'mlp'"):
        train_components(recipe, donor, tmp_path / "parts", ["mpl"])
    figure = pl.plots.seeds({name: [run] for name, run in trained.items()}, ["masked_loss"])
    assert sum(bool(trace.showlegend) for trace in figure.data) == len(COMPONENTS)


# Other distributions.


def test_ood_losses_equal_those_of_model_and_solver(model):
    tasks = {"as learned": TASK, "fewer": replace(TASK, rows=2, p_mask=0.5), "signs": replace(TASK, factors="signs")}
    found = evaluate_ood(model, tasks, n=120, seed=6)
    for name, task in tasks.items():
        batch, size = task.sample(120, seed=6), (task.rows, 4)
        one, hidden = found.sel(shift=name), ~batch.observed
        for measured, value in pl.measure(model, batch, ["loss", "observed_loss", "masked_loss"]).items():
            assert one[measured].sel(solver="model").item() == pytest.approx(value.item(), rel=1e-5)
        x = batch.values.view(-1, *size)
        z = complete_by_nuclear_norm(x, ~hidden.view(-1, *size))
        solver = one.sel(solver="nuclear norm")
        assert solver.observed_loss.item() == 0
        assert solver.masked_loss.item() == pytest.approx(
            (z - x)[hidden.view(-1, *size)].square().mean().item(), rel=1e-5
        )
        assert solver.loss.item() == pytest.approx((z - x).square().mean().item(), rel=1e-5)
        assert solver["nuclear_norm"].item() == pytest.approx(
            np.linalg.norm(z.numpy(), "nuc", axis=(1, 2)).mean(), rel=1e-4
        )
        assert one.true_nuclear_norm.item() == pytest.approx(
            np.linalg.norm(x.numpy(), "nuc", axis=(1, 2)).mean(), rel=1e-4
        )
        assert (
            solver["nuclear_norm"] <= one.true_nuclear_norm + 1e-6
        )  # the truth is one of the matrices that are minimized over
        assert one.zero_loss.item() == pytest.approx(batch.values[hidden].square().mean().item())
    assert found.clipped.sel(shift="signs").item() == 0
    figure = pl.papers.matrix_completion.plots.ood_losses(found, "task")
    drawn = {(trace.name, trace.xaxis): list(trace.y) for trace in figure.data}
    assert drawn["nuclear norm", "x"] == found.loss.sel(solver="nuclear norm").values.tolist()
    assert drawn["model", "x2"] == found.masked_loss.sel(solver="model").values.tolist()
    assert figure.layout.yaxis.type == figure.layout.yaxis2.type == "log"


def test_clipped_share_equals_a_large_sample(model):
    wide = replace(TASK, factors="gaussian")
    found = evaluate_ood(model, {0.3: wide}, n=2000)
    u, v = torch.randn(2, 100_000, generator=rng(0))
    assert found.clipped.item() == pytest.approx(((u * v).abs() > 1.05).float().mean().item(), rel=0.1)


def test_ood_tasks_that_do_not_fit_the_model_are_refused(model):
    with pytest.raises(ValueError, match="3 x 5 are 15 cells, and the model has 12 positions"):
        evaluate_ood(model, {4: TASK, 5: replace(TASK, cols=5)})
    with pytest.raises(ValueError, match="keep precision and limit"):
        evaluate_ood(model, {"fine": replace(TASK, precision=0.05)})
    coarse = replace(TASK, precision=0.2, limit=2.0)  # as many tokens, of other values
    assert coarse.d_vocab == TASK.d_vocab and evaluate_ood(model, {"coarse": coarse}, n=8).loss.notnull().all()
    with pytest.raises(ValueError, match="tokens of other values"):
        evaluate_ood(model, {"coarse": coarse}, n=8, trained_on=TASK)
    with pytest.raises(ValueError, match="got no task"):
        evaluate_ood(model, {})
