"""Probes against scikit-learn, against closed forms, and where it is known what can be read."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

import plateaulens as pl
from plateaulens.probing.ablation import ablate_feature
from plateaulens.probing.datasets import ProbeConfig, ProbeDataset, ProbeSplit, group_copies, states_at
from plateaulens.probing.fitting import _fit, _linear, auroc, fit_logistic, fit_probes
from plateaulens.probing.probes import answer_tokens, probe, probe_checkpoints, probe_tokens
from plateaulens.probing.verdict import quiet_or_loud, thirds
from plateaulens.tasks.algorithms.graphs import BreadthFirstSearch

N = 300
ADDITION = pl.tasks.BinaryAddition(bits=4)
SITE = "blocks.0.hook_resid_post"


SPLIT = ProbeConfig()


def three(parts):
    return parts.train, parts.validation, parts.test


def rng(seed):
    return torch.Generator().manual_seed(seed)


def problems(count=4, n=N, d=6, dtype=torch.double, seed=0):
    """Correlated columns far from 0 and from one another in size, and labels that a direction explains in part."""
    g = rng(seed)
    x = torch.randn(count, n, d, generator=g, dtype=dtype) @ torch.randn(d, d, generator=g, dtype=dtype)
    x = (x + 3) * torch.logspace(-2, 1, d, dtype=dtype)
    z = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) @ torch.randn(d, 2, generator=g, dtype=dtype)
    return x, (z + torch.randn(z.shape, generator=g, dtype=dtype) > 0).to(dtype)


def sklearn_logistic(x, y, C):
    fit = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10).fit(x.numpy(), y.numpy())
    return torch.tensor(np.column_stack([fit.coef_, fit.intercept_]))


# Fits.


@pytest.mark.parametrize("C", [0.1, 100.0])
def test_binary_probe_equals_scikit_learns_logistic_regression(C):
    x, y = problems()
    for i in range(len(x)):
        weights, biases = _linear(x[i].numpy(), y[i].numpy(), "labels", False, C)
        for label in range(2):
            expected = sklearn_logistic(x[i], y[i, :, label], C)[0]
            actual = torch.tensor([*weights[label], biases[label]])
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("max_hessian", [0, 2048])
def test_class_probe_minimizes_the_penalized_cross_entropy(classes, max_hessian, monkeypatch):
    """Both solvers, against L-BFGS in float64 on a row of weights for each class."""
    monkeypatch.setattr("plateaulens.probing.fitting.MAX_HESSIAN", max_hessian)
    x, _ = problems(1)
    x, C = (x[0] - x[0].mean(0)) / x[0].std(0) + 1, 10.0
    y = (x @ torch.randn(6, classes, generator=rng(5), dtype=torch.double)).argmax(-1)
    w = torch.zeros(classes, 7, dtype=torch.double, requires_grad=True)
    descent = torch.optim.LBFGS(
        [w], max_iter=500, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        descent.zero_grad()
        loss = F.cross_entropy(x @ w[:, :-1].T + w[:, -1], y) + w[:, :-1].square().sum() / (2 * C * N)
        loss.backward()
        return loss

    descent.step(closure)
    one_hot = F.one_hot(y, classes).double().numpy()
    weights, biases = _linear(x.numpy(), one_hot, "classes", True, C)
    assert weights.shape == (classes, 6)
    expected = F.log_softmax(x @ w[:, :-1].T + w[:, -1], -1).detach()
    torch.testing.assert_close(F.log_softmax(x @ weights.T + biases, -1), expected, rtol=1e-3, atol=1e-4)


def test_classes_without_training_examples_get_small_probabilities():
    x, y = problems(1)
    one_hot = F.one_hot(2 * y[0, :, 0].long(), 4).double().numpy()  # classes 0 and 2
    weights, biases = _linear(x[0].numpy(), one_hot, "classes", True, 1.0)
    p = torch.softmax(x[0] @ weights.T + biases, -1).mean(0)
    assert p[1] == pytest.approx(1e-4, rel=0.5) and p[3] == p[1] and p[0] > 0.2


@pytest.mark.parametrize("C", [np.inf, 10.0])
@pytest.mark.parametrize("bias", [True, False])
def test_number_probe_equals_numpys_least_squares_and_scikit_learns_ridge(C, bias):
    x, _ = problems(1)
    x, y = x[0].numpy(), torch.randn(N, 2, generator=rng(2)).double().numpy() + 4
    if np.inf == C:
        columns = np.column_stack([x, np.ones(N)]) if bias else x
        expected = np.linalg.lstsq(columns, y)[0].T
    else:
        ridge = Ridge(alpha=1 / C, fit_intercept=bias).fit(x, y)
        expected = np.column_stack([ridge.coef_, ridge.intercept_]) if bias else ridge.coef_
    weights, biases = _linear(x, y, "real", False, C, bias)
    assert bias or (biases == 0).all()
    np.testing.assert_allclose(np.column_stack([weights, biases])[:, : expected.shape[1]], expected, rtol=1e-6)


def hidden_probe(x, y, kind, exclusive=False, C=100.0, **config):
    return _fit(x.numpy(), y.numpy(), kind, exclusive, C, ProbeConfig(**config))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_hidden_layer_fits_what_a_line_cannot():
    x = torch.randn(400, 2, generator=rng(0), dtype=torch.double)
    xor = (x[:, 0] * x[:, 1] > 0).long()
    labels = torch.stack([xor, torch.ones_like(xor), xor]).T.double()
    probe = hidden_probe(x, labels, "labels", hidden=16)
    z = probe(x[None].float())[0]
    assert z[:, 1].isnan().all() and probe.inner.weights.shape == (1, 48, 2)
    assert ((z[:, ::2] > 0) == labels[:, ::2]).float().mean() > 0.97
    line = hidden_probe(x, labels, "labels")
    assert ((line(x[None].float())[0, :, ::2] > 0) == labels[:, ::2]).float().mean() < 0.6
    again, other = (hidden_probe(x, labels, "labels", hidden=16, seed=seed)(x[None].float())[0] for seed in (0, 1))
    assert again[:, 0].equal(z[:, 0]) and not other[:, 0].equal(z[:, 0])
    for classes in (2, 3):
        y = xor if classes == 2 else xor + (x[:, 0] > 0) * xor
        z = hidden_probe(x, F.one_hot(y, classes + 1).double(), "classes", True, hidden=16)(x[None].float())[0]
        assert z.shape == (400, classes + 1) and (z.argmax(-1) == y).float().mean() > 0.95
    numbers = (x[:, :1] * x[:, 1:]).abs()
    z = hidden_probe(x, numbers, "real", C=1e4, hidden=16)(x[None].float())[0]
    assert (z - numbers).square().mean() < 0.05 * numbers.var()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_hidden_layer_has_the_penalty_of_its_docstring():
    """Its gradient in the units' weights is 0 for mean loss + |w|^2 / (2 C n)."""
    x = torch.randn(200, 3, generator=rng(0), dtype=torch.double)
    y = (x[:, :1] > 0).double()
    probe = hidden_probe(x, y, "labels", C=0.1, hidden=4)
    weights = [t.double()[0].requires_grad_() for layer in (probe.inner, probe.outer) for t in (layer.weights,)]
    biases = [layer.biases.double()[0] for layer in (probe.inner, probe.outer)]
    z = (x @ weights[0].T + biases[0]).relu() @ weights[1].T + biases[1]
    loss = F.binary_cross_entropy_with_logits(z, y) + sum(w.square().sum() for w in weights) / (2 * 0.1 * 200)
    loss.backward()
    assert all(w.grad.abs().max() < 1e-3 for w in weights)


def test_separable_labels_have_a_finite_optimum():
    x = torch.randn(N, 5, generator=rng(0), dtype=torch.double)
    y = (x[:, :1] > 0).double()
    weights, biases = _linear(x.numpy(), y.numpy(), "binary", False, 1e4)
    assert np.isfinite(weights).all() and ((x @ weights.T + biases > 0) == (y > 0)).all()
    assert weights[0, 0] > 0.99 * np.linalg.norm(weights)


def test_labels_that_do_not_vary_are_nan_and_leave_the_others_alone():
    x, y = (part[0] for part in problems(1))
    y[:, 0] = 1
    probe = hidden_probe(x, y, "labels")
    assert probe.biases.isnan().tolist() == [[True, False]] and probe.weights.isnan().all(-1).tolist() == [
        [True, False]
    ]
    assert hidden_probe(x, y, "real").biases.isfinite().all()
    for kind, exclusive in (("labels", True), ("real", False)):
        assert hidden_probe(x, torch.ones_like(y), kind, exclusive).biases.isnan().all()
        assert hidden_probe(x[:0], y[:0], kind, exclusive).biases.isnan().all()


def test_columns_that_do_not_vary_or_repeat_do_no_harm():
    x, y = problems(1, d=5)
    wide = torch.cat([x, torch.full_like(x[..., :1], 7.0), x[..., :1]], -1)[0].numpy()
    for kind, labels in (("labels", y[0].numpy()), ("real", 3 * y[0].numpy())):
        weights, _ = _linear(wide, labels, kind, False, 10.0)
        assert (abs(weights[:, 5]) < 1e-6).all()
        np.testing.assert_allclose(weights[:, 0], weights[:, 6], rtol=1e-4)


@pytest.mark.parametrize("n", [30, 1200, 1333])
@pytest.mark.parametrize("constant", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("C", [np.inf, 1e4])
def test_a_constant_column_has_no_weight_in_least_squares(n, constant, C):
    x = torch.randn(n, 4, generator=rng(1)).double().numpy()
    x[:, 2] = np.float32(constant)
    weights, biases = _linear(x, 2 * x[:, :1] + 3, "real", False, C)
    np.testing.assert_allclose(weights, [[2.0, 0, 0, 0]], atol=1e-4)
    np.testing.assert_allclose(biases, [3.0], atol=1e-4)


@pytest.mark.parametrize("C", [100.0, 1e4])
def test_states_of_low_rank_are_fitted_to_the_optimum(C):
    """States of an untrained network have fewer dimensions than they could, and so have those of few sequences."""
    g = rng(0)
    x = torch.randn(180, 256, generator=g) * torch.logspace(3, -2, 256) @ torch.randn(256, 256, generator=g)
    x, y = x.repeat(4, 1).double(), torch.randint(0, 2, (180, 1), generator=g).repeat(4, 1).double()
    weights, biases = (torch.tensor(part) for part in _linear(x.numpy(), y.numpy(), "binary", False, C))
    weights.requires_grad_(), biases.requires_grad_()
    loss = F.binary_cross_entropy_with_logits(x @ weights.T + biases, y) + weights.square().sum() / (2 * C * 720)
    loss.backward()
    assert biases.grad.abs().max() < 1e-5 and (weights.grad.abs() / x.std(0)).max() < 1e-3


def test_auroc_is_scikit_learns():
    scores = torch.randn(3, 200, 2, generator=rng(0)).round(decimals=1)
    positive, there = torch.rand(3, 200, 2, generator=rng(1)) < 0.3, torch.rand(3, 200, generator=rng(2)) < 0.7
    found = auroc(scores, positive, there)
    for i in range(3):
        for j in range(2):
            own = there[i]
            assert float(found[i, j]) == pytest.approx(roc_auc_score(positive[i, own, j], scores[i, own, j]), abs=1e-6)
    assert auroc(scores, torch.ones_like(positive), there).isnan().all()


# Probes of a network with a known inside.


def transformer(task, seed=0, **kwargs):
    return pl.Transformer(pl.ModelConfig.for_task(task, d_model=16, n_layers=2, n_heads=2, seed=seed, **kwargs))


@pytest.fixture
def plant(monkeypatch):
    """Have probes see, at every site, noise and along a direction the labels of a feature at its positions."""
    direction = F.normalize(torch.randn(16, generator=rng(9)), dim=0)

    def at(feature, size=6.0):
        start = [0]

        def trace(model, batch, sites):
            rows = slice(start[0], start[0] + len(batch))
            start[0] = rows.stop % len(feature.positions)
            x = torch.randn(*batch.inputs.shape, 16, generator=rng(1 + rows.start))
            labels, places = (
                feature.labels[rows].flatten(2) if feature.labels.ndim > 2 else feature.labels[rows],
                feature.positions[rows],
            )
            value = torch.zeros(batch.inputs.shape).scatter(1, places.clamp(min=0), (2.0 * labels - 1) * (places >= 0))
            return type("T", (), {"cache": {s: x + size * value[..., None] * direction for s in sites}})

        monkeypatch.setattr("plateaulens.probing.datasets.trace", trace)
        return direction

    return at


def test_planted_direction_is_found_at_positions_of_each_example(plant):
    task = BreadthFirstSearch(nodes=5)
    batch = task.sample(1500, seed=1)
    _, places = task.features(batch)["queue"].labels, task.features(batch)["queue"].positions
    assert len(places[:, 0].unique()) > 3  # ragged
    places = places.clone()
    places[::7, 2] = -1
    labels = torch.randint(2, places.shape, generator=rng(3))
    feature = pl.tasks.Feature(labels, places)
    direction = plant(feature)
    found = probe(transformer(task), batch, feature, SITE, C=1.0)
    assert (F.cosine_similarity(found.weights[0, :, 0], direction, dim=-1) > 0.9).all()
    assert (found.table.loss < 0.02).all() and (found.table.auroc > 0.99).all()
    assert (abs(found.table.shuffled - np.log(2)) < 0.1).all()
    np.testing.assert_allclose(found.table.selectivity, found.table.shuffled - found.table.loss, rtol=1e-6)
    none = found.losses[0, 2].isnan()
    torch.testing.assert_close(none, places[found.test, 2] < 0)
    assert not found.losses[0, 0].isnan().any()


def test_states_are_the_activations_at_each_examples_own_positions(monkeypatch):
    monkeypatch.setattr("plateaulens.probing.datasets.MAX_SEQUENCES", 7)
    task = BreadthFirstSearch(nodes=5)
    batch, model = task.sample(20, seed=1), transformer(task)
    dataset = ProbeDataset.of(batch, "queue", ProbeSplit.of(torch.arange(20), ProbeConfig(fractions=(0.5, 0.2, 0.3))))
    states = states_at(model, batch, [dataset], ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])[0]
    _, cache = model.run_with_cache(batch.inputs)
    for i, places in enumerate(dataset.positions):
        for r, p in enumerate(places):
            torch.testing.assert_close(states[0, r, i], cache["blocks.0.hook_resid_post"][i, p])
            torch.testing.assert_close(states[1, r, i], cache["blocks.1.attn.hook_z"][i, p].flatten())


def test_sequences_are_split_and_never_rows(plant):
    parts = ProbeSplit.of(torch.arange(200), ProbeConfig())
    assert sorted(torch.cat([parts.train, parts.validation, parts.test]).tolist()) == list(range(200))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (120, 20, 60)
    alone = ProbeSplit.of(torch.arange(200), ProbeConfig(C=100.0))
    assert alone.test.equal(parts.test) and len(alone.train) == 140
    assert not ProbeSplit.of(torch.arange(200), ProbeConfig(C=100.0, seed=1)).test.equal(parts.test)
    # Labels of test sequences never reach a fit: each label is told by the sequence, at all offsets alike.
    batch = ADDITION.sample(200, seed=0)
    parts = ProbeSplit.of(group_copies(batch.tokens), ProbeConfig())
    feature = ADDITION.features(batch)["carry"]
    plant(feature)
    model, changed = transformer(ADDITION), feature.labels.clone()
    changed[parts.test] = 1 - changed[parts.test]
    a, b = (probe(model, batch, pl.tasks.Feature(y, feature.positions), SITE) for y in (feature.labels, changed))
    assert a.weights.equal(b.weights) and a.test.equal(parts.test)
    assert (a.table.accuracy > 0.95).all() and (b.table.accuracy < 0.05).all()


def test_copies_of_a_sequence_are_never_on_two_sides():
    batch = ADDITION.sample(1000, seed=0)  # of 256 pairs
    sides = [
        set(map(tuple, batch.tokens[part].tolist())) for part in three(ProbeSplit.of(group_copies(batch.tokens), SPLIT))
    ]
    assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
    assert sum(map(len, sides)) == len(set(map(tuple, batch.tokens.tolist())))
    assert [len(side) / 256 for side in sides] == pytest.approx([0.6, 0.1, 0.3], abs=0.02)
    alone = torch.arange(9)[torch.randperm(9, generator=rng(0))]
    assert group_copies(alone[:, None]).tolist() == list(range(9))  # all differ: the split is that of their places
    assert all(
        a.equal(b)
        for a, b in zip(
            three(ProbeSplit.of(torch.arange(9), SPLIT)), three(ProbeSplit.of(group_copies(alone[:, None]), SPLIT))
        )
    )
    # Labels that nothing tells: who has seen the sequence knows them.
    labels = torch.randint(0, 2, (256,), generator=rng(1))[group_copies(batch.tokens)]
    feature = pl.tasks.Feature(labels[:, None], torch.full((1000, 1), 8))
    wide = pl.Transformer(pl.ModelConfig.for_task(ADDITION, d_model=256, n_layers=2, n_heads=2, init_scale=20.0))
    found = probe(wide, batch, feature, SITE, C=1e4, shuffled=False)
    assert found.table.train_loss.item() < 0.2 and found.table.loss.item() > np.log(2)


def test_what_a_probe_scores_is_what_its_weights_say():
    batch, model = ADDITION.sample(600, seed=0), transformer(ADDITION)
    found = probe(model, batch, "carry", C=100.0, baseline=transformer(ADDITION, seed=1))
    _, cache = model.run_with_cache(batch.inputs)
    feature = ADDITION.features(batch)["carry"]
    for s, site in enumerate(found.sites):
        for r in range(4):
            x = cache[site][found.test, feature.positions[0, r]]
            y, z = feature.labels[found.test, r], x @ found.weights[s, r, 0] + found.biases[s, r, 0]
            at = dict(site=s, offset=r)
            loss = F.binary_cross_entropy_with_logits(z, y.float(), reduction="none")
            torch.testing.assert_close(found.losses[s, r], loss, rtol=1e-3, atol=1e-4)
            assert float(found.table.loss[at]) == pytest.approx(float(loss.mean()), abs=1e-4)
            assert float(found.table.accuracy[at]) == pytest.approx(float(((z > 0) == (y > 0)).float().mean()))
            assert float(found.table.auroc[at]) == pytest.approx(roc_auc_score(y, z.detach()), abs=1e-5)
    assert found.table.baseline.notnull().all() and not np.allclose(found.table.baseline, found.table.loss)
    best = [found.sites[i] for i in found.table.train_loss.values.argmin(0)]
    assert found.best_site() == best
    assert (found.train_loss == found.table.train_loss).all()  # as `Directions.of` wants it


def test_the_penalty_is_chosen_on_validation():
    batch = ADDITION.sample(900, seed=0)
    config = ProbeConfig(C=(1e-4, 1e-2, 1e6), fractions=(0.2, 0.4, 0.4))
    dataset = ProbeDataset.of(batch, "carry", ProbeSplit.of(torch.arange(900), config))
    noise = torch.randn(4, 900, 30, generator=rng(0))
    signal = noise + dataset.labels * torch.randn(30, generator=rng(1))
    assert (fit_probes(dataset, noise[None], config).scores["C"] < 1).all()
    assert (fit_probes(dataset, signal[None], config).scores["C"] == 1e6).any()
    assert (fit_probes(dataset, signal[None], config).scores["loss"] < 0.3).all()


@pytest.mark.parametrize(
    "task, name",
    [(BreadthFirstSearch(nodes=5), "queue"), (pl.tasks.MaximumSubarray(length=6), "max_ending_here")],
    ids=str,
)
def test_features_of_every_kind(task, name):
    batch = task.sample(500, seed=0)
    found = probe(transformer(task), batch, name, SITE)
    assert found.weights.isfinite().all() and found.table.loss.notnull().all()
    if found.kind == "integer":
        y = task.features(batch)[name].labels[found.test].double()
        ratio = found.losses[0].mean(1) / y.var(0, unbiased=False)
        torch.testing.assert_close(torch.tensor(found.table.r2.values[0]), (1 - ratio).float(), rtol=1e-3, atol=1e-3)
    else:  # the last queue is one node, so that its probe is a softmax
        assert task.features(batch)[name].labels[:, -1].sum(1).eq(1).all()
        _, cache = transformer(task).run_with_cache(batch.inputs)
        places = task.features(batch)[name].positions[found.test, -1]
        z = cache[SITE][found.test, places] @ found.weights[0, -1].T + found.biases[0, -1]
        y = task.features(batch)[name].labels[found.test, -1].argmax(1)
        assert float(found.table.loss[0, -1]) == pytest.approx(float(F.cross_entropy(z, y)), abs=1e-4)


def test_the_probe_of_the_plateau_paper_is_one_call():
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    batch, model = task.sample(2000, seed=0), transformer(task)
    answers = answer_tokens(batch)
    assert answers.kind == "classes" and answers.positions.equal(batch.answer_positions)
    found = probe(model, batch, answers, "blocks.0.hook_attn_out", C=100.0, shuffled=False)
    assert found.weights.shape == (1, 4, 5, 16) and found.table.shuffled.isnull().all()
    assert found.table.accuracy.notnull().all()
    ragged = answer_tokens(BreadthFirstSearch(nodes=5).sample(10, seed=0))
    assert (ragged.labels >= 0).all()


def test_a_pooled_probe_is_one_of_all_rows_and_splits_sequences():
    batch, model = ADDITION.sample(500, seed=0), transformer(ADDITION)
    feature = ADDITION.features(batch)["carry"]
    parts = ProbeSplit.of(group_copies(batch.tokens), ProbeConfig(C=100.0))
    places, labels = feature.positions.clone(), feature.labels.clone()
    places[::5, 1] = -1
    labels[parts.test] = 1 - labels[parts.test]  # what a fit must not see
    found = probe(model, batch, pl.tasks.Feature(feature.labels, places), SITE, C=100.0, pooled=True)
    other = probe(model, batch, pl.tasks.Feature(labels, places), SITE, C=100.0, pooled=True)
    assert found.weights.equal(other.weights) and (found.weights == found.weights[:, :1]).all()
    _, cache = model.run_with_cache(batch.inputs)
    states = cache[SITE][torch.arange(500)[:, None], places.clamp(min=0)].detach()
    own = states[parts.train][places[parts.train] >= 0]
    theirs = sklearn_logistic(own.double(), feature.labels[parts.train][places[parts.train] >= 0], 100.0)[0]
    for r in range(4):
        z, w = states[found.test, r] @ found.weights[0, r, 0] + found.biases[0, r], theirs[:-1].float()
        torch.testing.assert_close(z.sigmoid(), (states[found.test, r] @ w + theirs[-1]).sigmoid(), rtol=0, atol=2e-2)
        loss = F.binary_cross_entropy_with_logits(z, feature.labels[found.test, r].float(), reduction="none")
        loss = loss.where(places[found.test, r] >= 0, torch.nan)
        torch.testing.assert_close(found.losses[0, r], loss, rtol=1e-3, atol=1e-4, equal_nan=True)
        assert float(found.table.loss[0, r]) == pytest.approx(float(loss.nanmean()), abs=1e-4)
    places[:, 2] = -1
    without = probe(model, batch, pl.tasks.Feature(feature.labels, places), SITE, C=100.0, pooled=True)
    assert without.table.train_loss[0].isnull().values.tolist() == [False, False, True, False]


def test_what_tokens_tell_without_a_model():
    batch = ADDITION.sample(800, seed=0)
    carry = ADDITION.features(batch)["carry"]
    bits, r = ADDITION.bits, torch.arange(4)
    columns = torch.stack([r, bits + 1 + r, carry.positions[0]], -1).expand(800, -1, -1)  # a_r, b_r and s_r
    seen = probe_tokens(batch, "carry", columns)
    assert (seen.table.accuracy == 1).all() and (seen.table.loss < 0.05).all() and seen.sites == ("tokens",)
    blind = probe_tokens(batch, "carry", columns[..., 2:])
    assert float(blind.table.loss[0, 0]) == pytest.approx(np.log(2) / 2, abs=0.06)  # s_0 = 1 tells, s_0 = 0 does not
    assert (blind.table.loss > 0.3).all() and (seen.table.shuffled > 0.5).all()
    everything = probe_tokens(batch, "carry")
    assert (everything.table.accuracy == 1).all()
    assert everything.test.equal(probe(transformer(ADDITION), batch, "carry", SITE).test)
    later = columns.clone()
    later[..., 2] += 1
    for wrong in (later, columns[:, :2]):
        with pytest.raises(ValueError, match="no token after"):
            probe_tokens(batch, "carry", wrong)
    hidden = columns.clone()
    hidden[..., :2] = -1
    torch.testing.assert_close(probe_tokens(batch, "carry", hidden).losses, blind.losses, rtol=1e-2, atol=1e-3)


def test_probes_and_their_fit_are_what_an_ablation_takes():
    batch, model = ADDITION.sample(300, seed=0), transformer(ADDITION)
    found = probe(model, batch, "carry", shuffled=False)
    wanted = dict(train=ADDITION.sample(300, seed=1), fit=fit_logistic, draws=2, progress=False)
    for method in ("hyperplane", "nullspace"):
        result = ablate_feature(model, batch, "carry", found, method=method, k=2, **wanted)
        assert result.sites == tuple(found.best_site())
    x, y = problems()
    w, b = fit_logistic(x.float(), y[..., 0].long())
    for i in range(len(x)):
        expected = sklearn_logistic(x[i], y[i, :, 0], 100.0)[0].float()
        torch.testing.assert_close(torch.cat([w[i], b[i : i + 1]]), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def xor(monkeypatch):
    """Activations that hold two bits along directions of their own at all sites, and the feature "they differ"."""
    batch = ADDITION.sample(700, seed=0)
    places = ADDITION.features(batch)["carry"].positions
    bits, directions = torch.randint(2, (700, 4, 2), generator=rng(1)), torch.eye(16)[:2]
    x = torch.randn(*batch.inputs.shape, 16, generator=rng(2))
    x[torch.arange(700)[:, None], places] += 4 * (2.0 * bits - 1) @ directions
    starts = []

    def trace(model, some, sites):
        start = sum(starts) % 700
        starts.append(len(some))
        return SimpleNamespace(cache={site: x[start : start + len(some)] for site in sites})

    monkeypatch.setattr("plateaulens.probing.datasets.trace", trace)
    return batch, pl.tasks.Feature(bits[..., 0] ^ bits[..., 1], places)


def test_hidden_layer_reads_xor_and_a_linear_probe_does_not(xor, monkeypatch, annotations_unchecked):
    batch, feature = xor
    line = probe(transformer(ADDITION), batch, feature, SITE)
    found = probe(transformer(ADDITION), batch, feature, SITE, hidden=8, C=100.0)
    assert (
        (line.table.loss > 0.65).all() and (line.table.auroc < 0.65).all() and (abs(line.table.selectivity) < 0.1).all()
    )
    assert (found.table.loss < 0.1).all() and (found.table.accuracy > 0.97).all() and (found.table.auroc > 0.99).all()
    assert (found.table.shuffled > 0.6).all() and (found.table.selectivity > 0.5).all()
    monkeypatch.setattr("plateaulens.probing.datasets.MAX_SEQUENCES", 100)
    parted = probe(transformer(ADDITION), batch, feature, SITE, hidden=8, C=100.0, shuffled=False)
    np.testing.assert_allclose(parted.losses, found.losses, atol=1e-3)
    pooled = probe(transformer(ADDITION), batch, feature, SITE, hidden=8, C=100.0, pooled=True, shuffled=False)
    assert (pooled.table.loss < 0.1).all() and pooled.fit.inner.weights.shape == (4, 8, 16)
    wanted = dict(train=batch, draws=1, progress=False)
    for method in ("hyperplane", "nullspace"):
        with pytest.raises(ValueError, match="a hidden layer has no direction; probe without hidden="):
            ablate_feature(transformer(ADDITION), batch, "carry", found, method=method, **wanted)


def test_what_a_hidden_layer_scores_is_what_it_says():
    task = BreadthFirstSearch(nodes=5)
    batch, model = task.sample(400, seed=0), transformer(task)
    feature = task.features(batch)["queue"]
    labels = feature.labels.clone()
    labels[:, 1, 2] = 0  # does not vary: it does not count
    feature = pl.tasks.Feature(labels, feature.positions, feature.kind)
    found = probe(model, batch, feature, SITE, C=1.0, hidden=4, shuffled=False)
    _, cache = model.run_with_cache(batch.inputs)
    x = cache[SITE][found.test[:, None], feature.positions[found.test].clamp(min=0)].transpose(0, 1)
    there, y, z = feature.positions[found.test].T >= 0, labels[found.test].transpose(0, 1).float(), found.fit(x)
    one = labels.sum(-1).eq(1).all(0)
    assert one.tolist() == [False] * (len(one) - 1) + [
        True
    ]  # the last queue is one node, so that its probe is a softmax
    assert z[1, :, 2].isnan().all() and z.isnan().any(1).sum() == 1
    loss = F.binary_cross_entropy_with_logits(z, y, reduction="none").nanmean(-1)
    loss[one] = -(z[one].log_softmax(-1) * y[one]).sum(-1)
    torch.testing.assert_close(found.losses[0], loss.where(there, torch.nan), rtol=1e-3, atol=1e-4, equal_nan=True)
    line = probe(model, batch, feature, SITE, C=1.0, shuffled=False)
    assert found.table.C.equals(line.table.C) and found.test.equal(line.test)


def test_a_hidden_layer_reads_integers_and_tokens():
    batch = pl.tasks.MaximumSubarray(length=4).sample(1200, seed=0)
    line, found = (probe_tokens(batch, "max_ending_here", C=100.0, hidden=hidden) for hidden in (None, 16))
    assert (found.table.loss.values[0, 2:] < line.table.loss.values[0, 2:] / 2).all()  # a maximum bends
    assert (found.table.r2 > 0.8).all()


@pytest.mark.parametrize("hidden", [None, 4])
def test_labels_of_missing_places_do_not_matter(hidden):
    batch = ADDITION.sample(300, seed=0)
    places = ADDITION.features(batch)["carry"].positions.clone()
    places[::3, 1] = -1
    sums = batch.inputs.cumsum(1).gather(1, places.clamp(min=0)).float() / 10
    found = []
    for missing in (0.0, float("nan")):
        feature = pl.tasks.Feature(sums.where(places >= 0, missing), places, "real")
        found.append(probe(transformer(ADDITION), batch, feature, SITE, hidden=hidden, C=100.0, shuffled=False))
    torch.testing.assert_close(found[0].losses, found[1].losses, rtol=0, atol=0, equal_nan=True)
    xr.testing.assert_identical(found[0].table, found[1].table)


def test_the_auroc_of_a_softmax_is_that_of_its_probabilities():
    g, batch = rng(4), ADDITION.sample(2000, seed=0)
    y = torch.randint(3, (2000, 1), generator=g)
    config = ProbeConfig(C=1.0)
    feature = pl.tasks.Feature(y, torch.zeros_like(y), "classes")
    dataset = ProbeDataset.of(batch, feature, ProbeSplit.of(torch.arange(2000), config))
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [30.0, 0.5]])[y[:, 0]] + torch.randn(2000, 2, generator=g)
    fitted = fit_probes(dataset, x[None, None], config)
    test = dataset.split.test
    p = fitted.probe(x[None])[0, test].softmax(-1)
    theirs = roc_auc_score(y[test, 0], p, multi_class="ovr")
    assert float(fitted.scores["auroc"]) == pytest.approx(theirs, abs=1e-3) and theirs > 0.98


def test_an_offset_of_one_class_is_nan_and_does_not_count():
    batch, feature = ADDITION.sample(200, seed=0), None
    feature = ADDITION.features(batch)["carry"]
    labels = feature.labels.clone()
    labels[:, 1] = 1
    found = probe(transformer(ADDITION), batch, pl.tasks.Feature(labels, feature.positions))
    assert found.table.loss.isnull().all("site").values.tolist() == [False, True, False, False]
    assert found.best_site()[1] is None and (found.weights[:, 1] == 0).all()
    assert found.thirds().loss.notnull().values.tolist() == [True, True, True]


# Runs, thirds, verdicts.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    training = pl.train(transformer(ADDITION), ADDITION, pl.TrainConfig(steps=20, batch_size=16, lr=3e-3))
    folder = tmp_path_factory.mktemp("runs") / "addition"
    return pl.record(training, folder, ADDITION.sample(16, seed=1), every=10, save_every=10)


def test_every_checkpoint_is_probed_as_if_alone(run):
    batch = ADDITION.sample(400, seed=2)
    over = probe_checkpoints(run, batch, ["carry", "first_operand"], C=1.0, progress=False)
    assert over.loss.dims == ("feature", "step", "site", "offset") and over.step.values.tolist() == run.steps
    for name in ("carry", "first_operand"):
        for step in (0, 20):
            alone = probe(run.model(step), batch, name, C=1.0, baseline=run.model(0))
            own = over.sel(feature=name, step=step)
            for value in ("loss", "train_loss", "baseline", "accuracy", "shuffled"):
                np.testing.assert_allclose(own[value], alone.table[value], atol=2e-3, err_msg=value)
            np.testing.assert_allclose(own.losses, alone.losses, atol=0.05)
            np.testing.assert_allclose(thirds(over).sel(feature=name, step=step).loss, alone.thirds().loss, rtol=0.02)
    bent = probe_checkpoints(run, batch, "carry", steps=[10, 20], C=1.0, hidden=2, shuffled=False, progress=False)
    alone = probe(run.model(20), batch, "carry", C=1.0, hidden=2, shuffled=False, baseline=run.model(0))
    np.testing.assert_allclose(bent.sel(step=20).losses, alone.losses, atol=1e-4)
    np.testing.assert_allclose(bent.baseline_losses[0], alone.baseline_losses, atol=1e-4)
    single = probe_checkpoints(run, batch, "carry", steps=[20], C=1.0, shuffled=False, progress=False)
    assert single.loss.dims == ("step", "site", "offset")
    verdict = quiet_or_loud(over, "carry", plateau_steps=[0, 10], after_step=20, resamples=50)
    np.testing.assert_allclose(verdict.ratios.ratio[0], 1.0, atol=0.3)


def test_a_moving_window_sum_is_probed_over_its_run(tmp_path):
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    training = pl.train(transformer(task), task, pl.TrainConfig(steps=300, batch_size=64, lr=3e-3))
    run = pl.record(training, tmp_path / "mws", task.sample(64, seed=1), save_every=300, progress=False)
    batch = task.sample(1000, seed=2)
    asked = {
        "answer": answer_tokens(batch),
        "first": pl.tasks.Feature(batch.tokens[:, :1], batch.answer_positions[:, 1:2], "classes"),
    }
    over = probe_checkpoints(run, batch, asked, C=100.0, pooled=True, shuffled=False, progress=False)
    assert over.feature.values.tolist() == ["answer", "first"]
    assert over.loss.sel(feature="first").isel(step=0, site=0).notnull().values.tolist() == [True, False, False, False]
    learnt, untrained = over.sel(feature="answer").isel(step=-1), over.sel(feature="answer").isel(step=0)
    assert learnt.loss.isel(offset=0).min() < 0.1 < untrained.loss.isel(offset=0).min()  # y_1 = x_1 comes first
    np.testing.assert_allclose(untrained.loss, untrained.baseline, rtol=1e-6)
    alone = probe(run.model(300), batch, answer_tokens(batch), C=100.0, pooled=True, shuffled=False)
    np.testing.assert_allclose(learnt.loss, alone.table.loss, atol=1e-2)


def test_checkpoints_of_others_are_probed_like_a_run(neox):
    words = torch.randint(50, (60, 8), generator=rng(0))
    batch = pl.Batch(words, torch.full((60, 1), 6), torch.ones(60, 7, dtype=torch.bool))
    mine = pl.tasks.Feature((words[:, 2:5] > 25).long(), torch.arange(2, 5).expand(60, 3))
    suite = SimpleNamespace(steps=[1, 2], model=lambda step: neox[1])
    with pytest.raises(ValueError, match="no step 0"):
        probe_checkpoints(suite, batch, mine, progress=False)
    over = probe_checkpoints(suite, batch, {"mine": mine}, baseline=neox[1], shuffled=False, progress=False)
    assert over.loss.sizes == {"feature": 1, "step": 2, "site": 2, "offset": 3}
    np.testing.assert_allclose(over.loss, over.baseline, atol=0.02)


def table(losses, baseline, tests=200, spread=0.0):
    """What `probe_checkpoints` returns: losses [step offset] at the second of two sites, preferred by train loss."""
    losses, baseline = np.asarray(losses, float), np.asarray(baseline, float)
    noise = np.random.default_rng(0).normal(1, spread, tests)
    own = np.stack([np.full_like(losses, 9.0), losses], 1)
    other = np.stack([baseline, baseline + 1])
    axes = ("step", "site", "offset")
    return xr.Dataset(
        {
            "loss": (axes, own),
            "train_loss": (axes, np.stack([np.ones_like(losses), np.zeros_like(losses)], 1)),
            "baseline": (axes, np.stack([other] * len(losses))),
            "losses": ((*axes, "test"), own[..., None] * noise),
            "baseline_losses": ((*axes, "test"), np.stack([other] * len(losses))[..., None] * np.ones(tests)),
            "offsets": losses.shape[1],
        },
        {"step": 10 * np.arange(len(losses)), "site": ["a", "b"], "offset": range(losses.shape[1])},
    )


def test_thirds_are_geometric_means_at_the_best_site():
    found = thirds(table([[1, 4, 2, 8, 3, np.nan]], [6] * 6))
    np.testing.assert_allclose(found.loss, [[2, 4, 3]])
    np.testing.assert_allclose(found.baseline, [[6, 6, 6]])


CURVES = {
    "quiet": [[1.0, 1.0, 1.0], [1.0, 0.6, 1.0], [0.1, 0.1, 0.1]],
    "loud": [[1.0, 1.0, 1.0], [0.9, 0.9, 0.9], [0.4, 0.8, 0.8]],
    "mixed": [[1.0, 1.0, 1.0], [0.8, 1.0, 1.0], [0.1, 0.1, 0.1]],
}
OTHERS = {"early": [[0.5, 1, 1], [1, 1, 1], [0.1] * 3], "never": [[1] * 3, [1] * 3, [0.6] * 3]}


@pytest.mark.parametrize("name", [*CURVES, *OTHERS])
def test_the_rule_for_quiet_and_loud(name):
    curve = np.repeat((CURVES | OTHERS)[name], 2, axis=1)
    over = table(0.5 * curve, [0.5] * 6)
    found = quiet_or_loud(over, plateau_steps=[0, 10], after_step=20)
    assert found.verdict == (name if name in CURVES else "mixed") and found.agreement == 1
    np.testing.assert_allclose(found.ratios.ratio, curve[:, ::2])
    if name == "quiet":
        assert quiet_or_loud(over, plateau_steps=[0, 10], after_step=20, quiet=0.5).verdict == "mixed"
    assert name not in CURVES or name in repr(found)


def test_order_of_plateau_steps_does_not_matter():
    over = table(0.5 * np.array([[1.0] * 3, [1.0] * 3, [0.6] * 3, [0.1] * 3]), [0.5] * 3)
    found = quiet_or_loud(over, plateau_steps=[20, 0, 10], after_step=30, resamples=20)
    assert found.verdict == "quiet" and found.ratios.step.values.tolist() == [0, 10, 20, 30]
    for after in (20, 10):
        with pytest.raises(ValueError, match=f"after_step={after} is not after the plateau, whose last step is 20"):
            quiet_or_loud(over, plateau_steps=[20, 0], after_step=after)


def test_fewer_than_three_offsets_leave_a_third_empty():
    found = quiet_or_loud(table([[0.6] * 2, [0.1] * 2], [1.0] * 2), plateau_steps=[0], after_step=10, resamples=20)
    assert found.verdict == "quiet" and found.ratios.low.isnull().all("step").values.tolist() == [False, False, True]


def test_the_interval_is_that_of_a_mean_over_tests():
    spread, tests = 0.5, 400
    found = quiet_or_loud(table([[0.6] * 3, [0.1] * 3], [1.0] * 3, tests, spread), plateau_steps=[0], after_step=10)
    half = 1.96 * 0.6 * spread / np.sqrt(tests)
    np.testing.assert_allclose((found.ratios.high - found.ratios.low)[0] / 2, half, rtol=0.15)
    assert found.verdict == "quiet" and found.agreement > 0.95


def test_errors_say_what_to_do(run):
    batch, model = ADDITION.sample(50, seed=0), transformer(ADDITION)
    for wrong, what in [
        (dict(feature="cary"), "did you mean 'carry'"),
        (dict(sites="blocks.*.resid"), "unknown hook"),
        (dict(sites="blocks.0.attn.hook_pattern"), "one state a position"),
        (dict(fractions=(0.5, 0.1, 0.1)), "add up to 1"),
        (dict(fractions=(0.7, 0.0, 0.3)), "validation"),
        (dict(fractions=(0.8, -0.1, 0.3), C=1.0), "none is negative"),
        (dict(feature=pl.tasks.Feature(torch.ones(50, 1, dtype=torch.long), torch.full((50, 1), 99))), "position 99"),
        (dict(feature=answer_tokens(batch[:9])), "50"),
        (dict(C=0.0), "above 0"),
        (dict(C=np.inf), "C=inf"),
        (dict(hidden=0), "at least 1"),
        (
            dict(feature=pl.tasks.Feature(2 * torch.ones(50, 1, dtype=torch.long), torch.zeros(50, 1).long())),
            "not 0 and 1",
        ),
    ]:
        with pytest.raises(ValueError, match=what):
            probe(**{"model": model, "batch": batch, "feature": "carry", **wrong})
    carry = ADDITION.features(batch)["carry"]
    for twice in (["carry", "carry"], [carry, carry]):
        with pytest.raises(ValueError, match="different names"):
            probe_checkpoints(run, batch, twice, progress=False)
    with pytest.raises(ValueError, match="features"):
        probe(model, pl.Batch.prompts([[1, 2]] * 20, 2), "carry")
    with pytest.raises(ValueError, match="baseline has"):
        big = pl.Transformer(pl.ModelConfig.for_task(ADDITION, d_model=16, n_layers=3, n_heads=2))
        probe(model, batch, "carry", baseline=big)
    over = table([[1.0] * 3, [1.0] * 3], [1.0] * 3)
    with pytest.raises(ValueError, match="not probed"):
        quiet_or_loud(over, plateau_steps=[5], after_step=10)


def test_a_model_of_16_bits_is_probed():
    batch, model = ADDITION.sample(200, seed=0), transformer(ADDITION)
    whole, half = (probe(m, batch, "carry", SITE) for m in (model, deepcopy(model).bfloat16()))
    assert half.weights.dtype == torch.float32
    np.testing.assert_allclose(half.table.loss, whole.table.loss, atol=0.1)
