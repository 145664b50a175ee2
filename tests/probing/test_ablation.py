"""Ablations against models in which it is known what carries the answer, and edits against their definitions."""

from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import plateaulens as pl
from helpers import ReverseRepeated
from plateaulens.interventions import Project, from_json
from plateaulens.probing import edit_directions as removals
from plateaulens.probing.ablation import OffsetProbes, ablate_feature
from plateaulens.tasks.base import generator

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def rng(seed):
    return torch.Generator().manual_seed(seed)


def least_squares(x, y):
    """The probe w . x + b that is nearest to +1 and -1; its hyperplane lies between the classes."""
    sign, mean = 2.0 * y.double() - 1, x.double().mean(-2, keepdim=True)
    gram = (x - mean).mT @ (x - mean) / x.shape[-2] + 1e-6 * torch.eye(x.shape[-1])
    w = torch.linalg.solve(gram, ((x - mean).mT @ sign[..., None])[..., 0] / x.shape[-2])
    return w.float(), (sign.mean(-1) - (w * mean[..., 0, :]).sum(-1)).float()


# A model whose answer is one direction.


@dataclass(frozen=True, kw_only=True)
class Parities(pl.tasks.Task):
    """Each answer bit is the parity of some of the tokens before it."""

    n: int = 12
    n_out: int = 6
    prompt_len = property(lambda self: self.n + 1)
    d_vocab = property(lambda self: 3)

    def bits(self, tokens, seed=0):
        """At each position, the parity of some of the tokens up to it."""
        chosen = torch.randint(0, 2, (self.n_ctx, self.n_ctx), generator=rng(seed)).tril()
        chosen[:, 0] = 1
        return (tokens @ chosen[: tokens.shape[1], : tokens.shape[1]].T) % 2

    def sample(self, n, *, seed, device="cpu"):
        bits = torch.randint(0, 2, (n, self.n), generator=generator(seed, device))
        tokens = torch.cat([bits, torch.full((n, 1), 2)], 1)
        for _ in range(self.n_out):
            tokens = torch.cat([tokens, self.bits(tokens)[:, -1:]], 1)
        return self.batch(tokens[:, : self.prompt_len], tokens[:, self.prompt_len :])

    def features(self, batch, released=False):
        def at(seed):
            return pl.tasks.Feature(
                self.bits(batch.inputs, seed).gather(1, batch.answer_positions), batch.answer_positions
            )

        return {"next": at(0), "unrelated": at(7)}


class Noise(nn.Module):
    def __init__(self, task, d_model):
        super().__init__()
        self.steps = torch.randint(1, 4001, (task.n_ctx,), generator=rng(1))
        self.table = nn.Parameter(torch.randn(4001, d_model, generator=rng(2)))

    def forward(self, tokens):
        return self.table[((tokens + 1) * self.steps[: tokens.shape[1]]).cumsum(1) % 4001]


class Planted(HookedRootModule):
    """x = noise + size * (+1 or -1) u, read out along u, and a little along a direction of noise."""

    def __init__(self, task, size, leak, d_model=64):
        super().__init__()
        self.task, self.size, self.leak = task, size, leak
        self.cfg = SimpleNamespace(n_layers=2, d_model=d_model, d_vocab=3, n_ctx=task.n_ctx)
        self.embed, self.blocks = Noise(task, d_model), nn.ModuleList(nn.Module() for _ in SITES)
        for block in self.blocks:
            block.hook_resid_post = HookPoint()
        self.u, self.q = torch.linalg.qr(torch.randn(d_model, 2, generator=rng(3)))[0].T
        self.setup()

    def forward(self, tokens):
        noise = self.embed(tokens)
        x = 0.5 + noise - (noise @ self.u)[..., None] * self.u
        x = x + self.size * (2.0 * self.task.bits(tokens)[..., None] - 1) * self.u
        for block in self.blocks:
            x = block.hook_resid_post(x)
        scores = (x - 0.5) @ (self.u + self.leak * self.q)
        return torch.stack([-scores, scores, torch.full_like(scores, -20)], -1)


TASK = Parities()
EVAL_BATCH, TRAIN = TASK.sample(64, seed=0), TASK.sample(600, seed=1)
QUICK = dict(train=TRAIN, fit=least_squares, draws=8, progress=False)


@pytest.fixture(scope="module")
def quiet():
    """The answer's direction varies no more than any other."""
    return Planted(TASK, size=1.0, leak=0.2)


@pytest.fixture(scope="module")
def loud():
    """The answer's direction varies much more than any other."""
    return Planted(TASK, size=30.0, leak=3.0)


def means(result, measurement="exact_match"):
    rows = result.table.loc[measurement]
    return {"ablated": rows["mean"]["intact"] + rows.difference["intact"], **rows["mean"].to_dict()}


@pytest.mark.parametrize("method", ["hyperplane", "nullspace"])
def test_what_carries_the_answer_is_missed_and_nothing_else_is(quiet, method):
    result = ablate_feature(quiet, EVAL_BATCH, "next", sites=SITES[0], method=method, k=2, **QUICK)
    found = means(result)
    assert found["intact"] > 0.95 and found["ablated"] < 0.1
    assert min(found[control] for control in ("gaussian", "shuffled", "variance")) > 0.9
    for control in ("gaussian", "shuffled", "variance"):
        row = result.table.loc["exact_match", control]
        assert row.low < row.difference < row.high < -0.8 and row.as_far == 0
    assert result.table.loc["loss", "variance"].low > 0
    idle = ablate_feature(quiet, EVAL_BATCH, "unrelated", sites=SITES[0], method=method, k=2, **QUICK)
    assert means(idle)["ablated"] > 0.9 and idle.table.loc["exact_match", "variance"].low > -0.1


def test_a_direction_that_varies_much_is_missed_whatever_it_is_called(loud):
    """The class means of an unrelated bit differ by chance, along what varies most: only two controls see that."""
    result = ablate_feature(loud, EVAL_BATCH, "unrelated", sites=SITES[1], method="mean_difference", **QUICK)
    found, table = means(result), result.table.loc["exact_match"]
    assert found["intact"] > 0.95 and found["ablated"] < 0.4 and found["gaussian"] > 0.9
    assert table.high["gaussian"] < -0.5 and table.as_far["gaussian"] == 0
    for control in ("shuffled", "variance"):
        assert abs(table.difference[control]) < 0.25 and table.as_far[control] > 0
    assert f"gaussian {found['gaussian']:.3f}" in repr(result) and "unrelated removed by mean_difference" in repr(
        result
    )


def test_the_site_of_the_lowest_loss_is_edited_in_the_stated_layers(quiet):
    known = removals.FitData(quiet, TRAIN, TASK.features(TRAIN)["next"], (SITES[0],) * 6, least_squares, 1)
    w, b = known.fitted(known.states, known.labels)
    losses = torch.tensor([[0.1, 0.4, 0.4, 0.4, 0.4, 0.4], [0.2, 0.3, 0.5, 0.3, float("nan"), 0.3]])
    probes = SimpleNamespace(
        sites=SITES, weights=torch.stack([w, 2 * w]), biases=torch.stack([b, -b]), train_loss=losses
    )
    best = OffsetProbes.best(probes)
    assert best.sites == tuple(SITES[i] for i in (0, 1, 0, 1, 0, 1))
    assert torch.equal(best.weights[1], 2 * w[1]) and torch.equal(best.biases[:2], torch.stack([b[0], -b[1]]))
    assert OffsetProbes.best(probes, below=1).sites == (SITES[0],) * 6
    with pytest.raises(ValueError, match="no probe is of a layer below 0"):
        OffsetProbes.best(probes, below=0)
    result = ablate_feature(quiet, EVAL_BATCH, "next", probes, controls=["gaussian"], draws=2, progress=False)
    assert result.sites == best.sites and means(result)["ablated"] < 0.1
    fitted = ablate_feature(quiet, EVAL_BATCH, "next", sites=SITES[0], **QUICK | dict(controls=[]))
    below = ablate_feature(quiet, EVAL_BATCH, "next", OffsetProbes.best(probes, below=1), controls=[], progress=False)
    torch.testing.assert_close(fitted.values.ablated.values, below.values.ablated.values)


def test_ablating_is_what_the_model_does_under_the_edits(quiet):
    """Every number again, by measure and intervene."""
    result = ablate_feature(quiet, EVAL_BATCH, "next", sites=SITES[0], **QUICK | dict(draws=2), seed=5)
    known = removals.FitData(quiet, TRAIN, TASK.features(TRAIN)["next"], (SITES[0],) * 6, least_squares, 8)
    w, b = known.fitted(known.states, known.labels)
    size = w.norm(dim=-1, keepdim=True)
    with pl.intervene(quiet, Project(SITES[0], EVAL_BATCH.answer_positions, w / size, -b / size[..., 0])):
        ablated = pl.measure(quiet, EVAL_BATCH, ["exact_match", "accuracy", "loss"], reduce=None)
    for name, values in ablated.items():
        np.testing.assert_allclose(result.values.ablated.sel(measurement=name), values, rtol=1e-4, atol=1e-5)
        intact = pl.measure(quiet, EVAL_BATCH, [name], reduce=None)[name]
        np.testing.assert_array_equal(result.values.intact.sel(measurement=name), intact)
        difference = result.table.loc[(name, "intact"), "difference"]
        assert difference == pytest.approx(float((values - intact).mean()), abs=1e-5)
        drawn = result.values.controls.sel(measurement=name, control="variance")
        other = result.table.loc[(name, "variance"), "difference"]
        assert drawn.shape == (2, 64) and other == pytest.approx(float(values.mean() - drawn.mean()), abs=1e-5)
    again = ablate_feature(quiet, EVAL_BATCH, "next", sites=SITES[0], **QUICK | dict(draws=2), seed=5)
    assert again.values.equals(result.values) and again.table.equals(result.table)


class Early(ReverseRepeated):
    def features(self, batch, released=False):
        """Whether each letter of the answer is among the first two of the alphabet."""
        return {"early": pl.tasks.Feature((batch.answers[:, :4] < 2).long(), batch.answer_positions[:, :4])}


def test_a_feature_is_removed_where_each_example_has_it():
    task = Early(answer_only=True)
    shape = dict(d_model=16, n_heads=2, n_layers=2, init_scale=10.0)
    model = pl.Transformer(pl.ModelConfig.for_task(task, attention="softmax", seed=0, **shape))
    eval_batch, train = task.sample(50, seed=0), task.sample(300, seed=1)
    options = dict(train=train, fit=least_squares, draws=2, progress=False)
    result = ablate_feature(model, eval_batch, "early", sites=[*SITES, *SITES], **options)
    states, feature = pl.trace(model, train, [*SITES]).cache, task.features(train)["early"]
    edits = []
    for offset in range(4):
        there = feature.positions[:, offset] >= 0
        assert there.sum() > 50 and (offset == 0 or there.sum() < 300)
        x = states[SITES[offset % 2]][there, feature.positions[there, offset]]
        w, b = least_squares(x[None], feature.labels[there, offset][None])
        places = task.features(eval_batch)["early"].positions[:, offset, None]
        edits.append(Project(SITES[offset % 2], places, w[None] / w.norm(), -b[None] / w.norm()))
    with pl.intervene(model, *edits):
        expected = pl.measure(model, eval_batch, ["accuracy", "loss"], reduce=None)
    for name, values in expected.items():
        np.testing.assert_allclose(result.values.ablated.sel(measurement=name), values, rtol=1e-3, atol=1e-4)
        assert (result.values.ablated != result.values.intact).sel(measurement=name).any()
    assert result.values.controls.notnull().all() and result.table.loc["loss"].notnull()[1:].all(axis=None)


def test_intervals_are_those_of_scipy():
    from scipy.stats import bootstrap

    from plateaulens.probing.ablation import RESAMPLES, _gap

    source = np.random.default_rng(0)
    after, before = source.normal(size=40), source.normal(size=(1, 40)) + 0.5
    weight = source.multinomial(40, np.full(40, 1 / 40), RESAMPLES)
    mean, gap, low, high = _gap(after, before, weight, np.ones((RESAMPLES, 1), int))
    theirs = bootstrap(((after - before[0]),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=1)
    assert (mean, gap) == pytest.approx((before.mean(), (after - before[0]).mean()))
    assert [low, high] == pytest.approx([*theirs.confidence_interval], abs=0.02)
    draws = np.zeros((8, 40)) + np.arange(8)[:, None]  # all that varies is between draws
    picked = source.multinomial(8, np.full(8, 1 / 8), RESAMPLES)
    _, _, low, high = _gap(np.zeros(40), draws, weight, picked)
    theirs = bootstrap((np.arange(8),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=1)
    assert [-high, -low] == pytest.approx([*theirs.confidence_interval], abs=0.2)


# What is removed.


@pytest.fixture
def known(monkeypatch):
    """States of a steep spectrum at three offsets, labels that some directions tell, examples that lack an offset."""

    def make(k=3, labels=2, steep=(1, -2), n=400, d_model=16):
        turn = torch.linalg.qr(torch.randn(d_model, d_model, generator=rng(0)))[0]
        noise = torch.randn(n, 3, d_model, generator=rng(1)) * torch.logspace(*steep, d_model) @ turn
        told = noise @ torch.randn(d_model, labels, generator=rng(2))
        y = (told + 0.3 * torch.randn(n, 3, labels, generator=rng(3)) > 0).long()
        states, positions = noise + 3.0, torch.arange(3).expand(n, 3).clone()
        positions[: n // 4, 1] = -1
        monkeypatch.setattr(removals, "trace", lambda *args: SimpleNamespace(cache={"x": states}))
        batch = pl.Batch(torch.zeros(n, 4).long(), positions, torch.ones(n, 3).bool())
        feature = pl.tasks.Feature(y, positions, "labels")
        return removals.FitData(nn.Linear(1, 1), batch, feature, ("x",) * 3, least_squares, k), states, y, positions

    return make


def test_moments_are_of_the_examples_that_have_the_offset(known):
    found, states, y, positions = known()
    for offset in range(3):
        there = positions[:, offset] >= 0
        x = states[there, offset]
        assert torch.equal(found.states[offset, : there.sum()], x) and found.counts[offset] == there.sum()
        assert torch.equal(found.labels[offset, : there.sum()], y[there, offset])
        torch.testing.assert_close(found.mean[offset], x.mean(0))
        torch.testing.assert_close(found.covariance[offset], x.T.double().cov(correction=0), rtol=1e-4, atol=1e-6)
        w, b = found.fitted(found.states, found.labels)
        for label in range(2):
            alone = least_squares(x[None], y[there, offset, label][None])
            torch.testing.assert_close(w[offset, label], alone[0][0], rtol=1e-3, atol=1e-4)
        shuffled = found.shuffled(rng(0))[offset]
        assert not torch.equal(shuffled, found.labels[offset])
        assert torch.equal(shuffled[there.sum() :], found.labels[offset, there.sum() :])
        both = [sorted(map(tuple, rows[: there.sum()].tolist())) for rows in (shuffled, found.labels[offset])]
        assert both[0] == both[1]


def edited(removal, states):
    """States [offset n d_model] after the edit, written out."""
    new = states.clone()
    for offset, rows in enumerate(removal.basis):
        for u, t in zip(rows, removal.target[offset]):
            new[offset] -= (states[offset] @ u - t)[:, None] * u
    return new


def inside(found, values):
    return torch.cat([row[:n] for row, n in zip(values, found.counts.tolist())])


def test_a_hyperplane_is_reached_and_the_intersection_reaches_all(known):
    found, *_ = known()
    w, b = found.fitted(found.states, found.labels)
    one = removals.hyperplanes(w[:, :1], b[:, :1])
    torch.testing.assert_close(
        edited(one, found.states) @ w[:, 0, :, None] + b[:, :1, None], torch.zeros(3, 400, 1), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(edited(one, edited(one, found.states)), edited(one, found.states))
    both = removals._intersection(w, b)
    after = edited(both, found.states)
    assert (after @ w.mT + b[:, None]).abs().max() < 1e-3
    torch.testing.assert_close(edited(both, after), after)
    sums = edited(removals.hyperplanes(w, b), found.states)  # the paper's rule is another thing for two rows
    assert (sums @ w.mT + b[:, None]).abs().max() > 0.1
    twice = removals._intersection(torch.cat([w, w], 1), torch.cat([b, b], 1))
    assert twice.there.sum() == 6
    torch.testing.assert_close(edited(twice, found.states), after, rtol=1e-3, atol=1e-3)


def test_the_null_space_tells_nothing_any_more(known):
    found, *_ = known(k=4, steep=(0, 0))
    removal = removals.METHODS["nullspace"](found, found.labels)
    gram = removal.basis @ removal.basis.mT
    torch.testing.assert_close(gram, torch.eye(8).expand_as(gram), rtol=0, atol=1e-4)
    after = edited(removal, found.states)
    torch.testing.assert_close(
        after @ removal.basis.mT, removal.target[:, None].expand(-1, 400, -1), rtol=1e-3, atol=1e-3
    )

    def right(states):
        w, b = found.fitted(states, found.labels)
        return (((states @ w.mT + b[:, None]) > 0) == found.labels)[0].float().mean()

    assert right(found.states) > 0.9 and right(after) < 0.65
    first = removals.METHODS["nullspace"](known(k=1, steep=(0, 0))[0], found.labels)
    same = removals._intersection(*found.fitted(found.states, found.labels))
    torch.testing.assert_close(edited(first, found.states), edited(same, found.states), rtol=1e-4, atol=1e-4)


def test_the_difference_of_class_means_is_put_to_the_mean(known):
    found, states, y, positions = known(labels=1)
    removal = removals.METHODS["mean_difference"](found, found.labels)
    for offset in range(3):
        there = positions[:, offset] >= 0
        x, label = states[there, offset], y[there, offset, 0].bool()
        difference = x[label].mean(0) - x[~label].mean(0)
        u = difference / difference.norm()
        assert abs(float(removal.basis[offset, 0] @ u)) == pytest.approx(1, abs=1e-4)
        expected = x - ((x - x.mean(0)) @ u)[:, None] * u
        torch.testing.assert_close(edited(removal, found.states)[offset, : there.sum()], expected, rtol=1e-3, atol=1e-3)


def test_an_offset_whose_label_does_not_vary_keeps_all_it_has(known):
    found, *_ = known()
    found.labels[2] = 1
    found.labels[0, :, 0] = 0
    for name, find in removals.METHODS.items():
        removal = find(found, found.labels)
        rows = {"hyperplane": 2, "nullspace": 6, "mean_difference": 2}[name]
        assert removal.basis.shape[1] == rows and removal.there.sum(1).tolist() == [rows // 2, rows, 0]
        assert removal.basis.isfinite().all() and removal.target.isfinite().all()
        for control in removals.CONTROLS.values():
            drawn = control(removal, found, find, rng(0))
            assert drawn.basis.isfinite().all() and drawn.target.isfinite().all() and not drawn.there[2].any()
            assert drawn.there.sum(1).tolist() == removal.there.sum(1).tolist()


def variance(removal, found):
    along = torch.einsum("okm,omn,okn->ok", removal.basis.double(), found.covariance, removal.basis.double())
    return along.sum(1) if removal.joint else along


@pytest.mark.parametrize("method", removals.METHODS)
def test_controls_keep_what_they_must(known, method):
    found, *_ = known()
    find = removals.METHODS[method]
    removal = find(found, found.labels)
    gaussian, other, matched, apart = (
        removals.CONTROLS[name](removal, found, find, rng(0))
        for name in ("gaussian", "gaussian", "variance", "orthogonal")
    )
    assert torch.equal(gaussian.basis, other.basis)
    for drawn in (gaussian, matched, apart):
        gram = drawn.basis @ drawn.basis.mT
        eye = torch.eye(gram.shape[1]).expand_as(gram)
        torch.testing.assert_close(gram if removal.joint else gram * eye, eye, rtol=0, atol=1e-5)
        assert (drawn.basis - removal.basis).abs().max() > 0.1
    torch.testing.assert_close(variance(matched, found), variance(removal, found), rtol=1e-3, atol=1e-6)
    means = torch.einsum("okm,om->ok", gaussian.basis, found.mean)
    torch.testing.assert_close(gaussian.target, means if method == "mean_difference" else removal.target)
    for drawn in (matched, apart):
        moved = [torch.einsum("okm,om->ok", r.basis, found.mean) - r.target for r in (drawn, removal)]
        torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-3)
    assert (apart.basis @ removal.basis.mT).abs().max() < 1e-5
    if removal.basis.shape[1] == 1 or removal.joint:  # so as much of each state is changed, on the average
        energy = [
            inside(found, (edited(r, found.states) - found.states).square().sum(-1)).mean() for r in (matched, removal)
        ]
        torch.testing.assert_close(*energy, rtol=1e-2, atol=1e-3)


def test_how_much_of_the_removed_a_control_takes_is_said(known):
    """By hand in three dimensions: a direction that has nearly all the variance, and its controls."""
    found, *_ = known()
    found.covariance = torch.diag(torch.tensor([9.0, 4.0, 1.0] + [0.0] * 13)).double().expand(3, 16, 16)
    found.mean = torch.zeros(3, 16)
    axes = torch.eye(16).expand(3, 16, 16)
    one, both = (removals.EditDirections(axes[:, :k], torch.zeros(3, k), joint=True) for k in (1, 2))
    between = (axes[:, :1] + axes[:, 1:2]) / 2**0.5
    for other, expected in (
        (one, (1.0, 1.0)),
        (removals.EditDirections(axes[:, 1:2], torch.zeros(3, 1), True), (0.0, 4 / 9)),
        (removals.EditDirections(between, torch.zeros(3, 1), True), (0.5, 6.5 / 9)),
        (both, (1.0, 13 / 9)),
    ):
        assert removals.shared(one, other, found) == pytest.approx(expected, abs=1e-6)
    assert removals.shared(both, one, None)[0] == pytest.approx(0.5)
    rows = [
        removals.shared(one, removals.CONTROLS[name](one, found, removals.METHODS["mean_difference"], rng(0)), found)
        for name in ("variance", "orthogonal")
    ]
    assert rows[0] == pytest.approx((1.0, 1.0), abs=1e-3)  # nothing else has as much
    assert rows[1][0] < 1e-9 and rows[1][1] == pytest.approx(4 / 9, abs=1e-3)  # the most that there is beside it


def test_beside_too_many_directions_there_is_no_orthogonal_control(quiet):
    many = dict(sites=SITES[0], method="nullspace", k=40, **QUICK | {"draws": 1})
    with pytest.warns(UserWarning, match="40 directions leave 24 of 64 dimensions"):
        result = ablate_feature(quiet, EVAL_BATCH, "next", **many)
    assert result.values.control.values.tolist() == ["gaussian", "shuffled", "variance"]
    every = OffsetProbes((SITES[0],) * 6, torch.eye(64).expand(6, 64, 64), torch.zeros(6, 64))
    for method in (many, dict(probes=every, **QUICK)):
        with pytest.raises(ValueError, match="directions leave .* leave 'orthogonal' out of controls="):
            ablate_feature(quiet, EVAL_BATCH, "next", **method, controls=["gaussian", "orthogonal"])


@pytest.mark.parametrize("method", removals.METHODS)
def test_classes_are_removed_as_one_label_each(quiet, method):
    """Not as numbers: what the classes are called makes no difference."""

    def named(swap):
        return lambda b: pl.tasks.Feature(swap(b.tokens[:, :1]), b.answer_positions[:, :1], "classes")

    options = dict(sites=SITES[0], train=TRAIN, method=method, k=1, controls=[], metrics="loss", progress=False)
    plain, other = (ablate_feature(quiet, EVAL_BATCH, named(f), **options) for f in (lambda x: x, lambda x: 4 - x))
    np.testing.assert_allclose(plain.values.ablated, other.values.ablated, atol=2e-3)


@pytest.mark.parametrize("method", removals.METHODS)
def test_a_feature_of_a_model_of_16_bits_is_removed(method):
    task = pl.tasks.BinaryAddition(bits=3)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=32, n_heads=2, n_layers=1)).bfloat16()
    options = dict(sites=SITES[0], method=method, train=task.sample(100, seed=1), k=2, draws=1, progress=False)
    models, batch = (model, deepcopy(model).float()), task.sample(8, seed=0)
    half, whole = (ablate_feature(m, batch, "carry", **options) for m in models)
    loss = dict(measurement="loss")
    np.testing.assert_allclose(half.values.intact.sel(loss), whole.values.intact.sel(loss), atol=0.05)
    np.testing.assert_allclose(half.values.ablated.sel(loss), whole.values.ablated.sel(loss), atol=0.1)


# The edit.


def test_the_edit_is_where_each_example_has_it_in_cached_decoding_too():
    task = ReverseRepeated()
    batch = task.sample(40, seed=2)
    shape = dict(d_model=16, n_heads=2, n_layers=2, init_scale=10.0)
    positions = torch.cat([batch.answer_positions[:, :3], batch.answer_positions[:, :1]], 1)
    basis, target = torch.randn(4, 2, 16, generator=rng(0)), torch.randn(4, 2, generator=rng(1))
    for attention in ("linear", "softmax"):
        model = pl.Transformer(pl.ModelConfig.for_task(task, attention=attention, seed=0, **shape))
        plain = pl.greedy_decode(model, batch)
        before = pl.trace(model, batch, [SITES[0]]).cache[SITES[0]]
        with pl.intervene(model, Project(SITES[0], positions, basis, target, factor=0.5)):
            after = pl.trace(model, batch, [SITES[0]]).cache[SITES[0]]
            cached = pl.greedy_decode(model, batch)
            with model.hooks(fwd_hooks=[("hook_embed", lambda tensor, hook: None)]):
                assert torch.equal(pl.greedy_decode(model, batch), cached)
        assert not torch.equal(cached, plain)
        expected = before.clone()
        for i, places in enumerate(positions.tolist()):
            for offset, place in enumerate(places):
                if place >= 0:
                    for u, t in zip(basis[offset], target[offset]):
                        expected[i, place] -= 0.5 * (before[i, place] @ u - t) * u
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
        untouched = torch.ones(40, 7).bool().scatter(1, positions.clamp(min=0), False)
        untouched[:, 0] = True & ~(positions == 0).any(1)
        assert torch.equal(after[untouched], before[untouched])


def test_the_edit_lets_gradients_through():
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16, n_heads=2, n_layers=2))
    batch, u = task.sample(3, seed=0), torch.eye(16)[:1, None]
    with pl.intervene(model, Project(SITES[0], torch.full((3, 1), 5), u, torch.ones(1, 1))):
        with model.hooks(fwd_hooks=[(SITES[0], lambda x, hook: x.register_hook(kept.append) and None)]):
            kept = []
            task.loss(model(batch.inputs), batch).backward()
    assert model.W_E.grad.abs().sum() > 0


def test_the_edit_goes_to_json_and_back_and_differs_by_its_tensors():
    u = torch.linalg.qr(torch.randn(16, 4, generator=rng(0)))[0].T.reshape(2, 2, 16)
    one = Project(SITES[0], torch.tensor([[1, -1]]), u, torch.zeros(2, 2))
    back = from_json(one.to_json(), one.tensors())
    assert back == one and repr(back) == repr(one)
    assert one != Project(SITES[0], torch.tensor([[1, 2]]), u, torch.zeros(2, 2))
    assert "basis=<[2, 2, 16]>" in repr(one)


def test_bad_input_gives_one_line(quiet):
    model = pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=16, n_heads=2, n_layers=2))
    u, t, places = torch.ones(1, 1, 16), torch.zeros(1, 1), torch.zeros(64, 1).long()
    for wrong in ((places, u, torch.zeros(2, 1)), (torch.zeros(64, 2).long(), u, t), (places, u[0], t)):
        shapes = SimpleNamespace(**dict(zip(("positions", "basis", "target"), wrong)))
        with pytest.raises(ValueError, match="do not fit each other"):
            Project.__post_init__(shapes)
    edits = [
        (Project(SITES[0], places[:5], u, t), "positions of 5 examples, and the model runs on 64"),
        (Project("blocks.0.attn.hook_z", places, u, t), "choose another hook"),
        (Project(SITES[0], places, u[..., :7], t), r"needs activations \[batch pos 7\]"),
        (Project(SITES[0], places + 40, u, t), "never applied"),
        (Project("blocks.0.hook_resid_pots", places, u, t), "unknown hook"),
    ]
    for edit, message in edits:
        with pytest.raises(ValueError, match=message), pl.intervene(model, edit):
            model(EVAL_BATCH.inputs)
    given = OffsetProbes((SITES[0],) * 6, torch.ones(6, 1, 64), torch.zeros(6, 1))
    calls = [
        (dict(feature="nxet", sites=SITES[0]), "did you mean 'next'"),
        (dict(feature="next"), "either probes= or sites="),
        (dict(feature="next", probes=given, sites=SITES[0]), "either probes= or sites="),
        (dict(feature="next", sites=SITES[0], method="nulspace"), "did you mean 'nullspace'"),
        (dict(feature="next", sites=SITES[0], controls=["gausian"]), "did you mean 'gaussian'"),
        (dict(feature="next", sites=SITES), "6 offsets, and there are sites for 2"),
        (dict(feature="next", sites="blocks.0.hook_resid_pots", train=TRAIN), "unknown hook"),
        (dict(feature="next", probes=given), "give train="),
        (dict(feature="next", probes=given, train=TRAIN, fit=None), "give fit="),
        (dict(feature="next", sites=SITES[0], method="nullspace", k=64, train=TRAIN), "leave nothing of 64"),
        (
            dict(feature=lambda b: pl.tasks.Feature(b.answer_positions, b.answer_positions + 9), sites=SITES[0]),
            "read at position 26",
        ),
        (
            dict(feature=lambda b: pl.tasks.Feature(b.answer_positions, b.answer_positions, "integer"), sites=SITES[0]),
            "take 'mean_difference'",
        ),
    ]
    for kwargs, message in calls:
        with pytest.raises(ValueError, match=message):
            ablate_feature(quiet, EVAL_BATCH, **kwargs, progress=False)
    prompts = pl.Batch.prompts([[1, 2]], 2)
    with pytest.raises(ValueError, match="have no feature 'next'"):
        ablate_feature(quiet, prompts, "next", sites=SITES[0])
    none = OffsetProbes((SITES[0],) * 6, torch.zeros(6, 1, 64), torch.zeros(6, 1))
    with pytest.raises(ValueError, match="nothing to remove"):
        ablate_feature(quiet, EVAL_BATCH, "next", none, controls=[], progress=False)


def test_one_row_of_positions_is_for_every_example_of_any_batch():
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model, batch = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16, init_scale=10.0)), task.sample(5, seed=3)
    places, basis, target = torch.tensor([[4, 6]]), torch.eye(16)[:2, None], torch.full((2, 1), 3.0)
    for n in (2, 5):
        seen = [pl.trace(model, batch[:n], ["outputs"]).outputs]
        for rows in (1, n):
            with pl.intervene(
                model, pl.interventions.Project("blocks.0.hook_resid_pre", places.expand(rows, -1), basis, target)
            ):
                seen.append(pl.trace(model, batch[:n], ["outputs"]).outputs)
        assert torch.equal(seen[1], seen[2]) and not torch.allclose(seen[0], seen[1])
