"""Paired differences against brute force, scipy and what is known of censoring."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import plateaulens as pl
from plateaulens.analysis.paired_differences import paired_by_seed

INF = math.inf
TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)


class Seeded:
    """A run's face: what was measured, the task's levels and the seeds."""

    task = TASK

    def __init__(self, seed, drop, last=400, peak=0.5, model_seed=None):
        steps = pd.Index(range(0, last + 1, 10), name="step")
        reached = steps >= (INF if drop is None else drop)
        loss = np.where(reached, TASK.loss_floor(), TASK.loss_plateau())
        collapse = [0.0, peak] + [0.1] * (len(steps) - 2)
        lists = [[0.0, 1.0]] * len(steps)
        self.metrics = pd.DataFrame({"loss": loss, "collapse": collapse, "rows": lists, "none": np.nan}, steps)
        self.config = {"model": {"seed": seed if model_seed is None else model_seed}, "train": {"seed": seed}}


def arms(control, changed, **options):
    return [[Seeded(seed, drop, **options) for seed, drop in enumerate(drops)] for drops in (control, changed)]


# The estimate.


def test_ten_pairs_equal_values_computed_by_hand():
    gains = [-95, -100, -110, -120, -130, -150, -160, -170, -185, -200]
    result = pl.paired_difference([300] * 10, [300 + g for g in gains])
    assert str(result) == "drop: median -140 steps [-185, -100] (10 pairs, 97.9 %), p = 0.002"
    assert result.median == -140 and result.n == 10 and result.p == pytest.approx(2 / 2**10)
    assert sorted(result.differences) == sorted(gains) and (result.censored, result.left_out) == (0, 0)


@pytest.mark.parametrize("n", [2, 5, 6, 7, 9, 10, 15, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_interval_and_p_value_equal_scipys(n, confidence):
    d = np.random.default_rng(n).standard_normal(n) + 0.4
    result = pl.paired_difference(np.zeros(n), d, confidence=confidence)
    assert result.median == pytest.approx(np.median(d))
    test = stats.quantile_test(d, q=0, p=0.5)
    low, high = test.confidence_interval(confidence_level=confidence)
    if not np.isnan(low):
        assert result.interval == (low, high) and result.confidence >= confidence
    else:  # too few for that: all of them, and what they cover
        assert result.interval == (d.min(), d.max()) and result.confidence == pytest.approx(1 - 2 ** (1 - n))
        assert result.confidence <= confidence
    positive = sum(d > 0)
    outcomes = [sum(signs) for signs in itertools.product((0, 1), repeat=n)] if n <= 10 else []
    if outcomes:
        extreme = np.mean([abs(o - n / 2) >= abs(positive - n / 2) for o in outcomes])
        assert result.p == pytest.approx(extreme)


@pytest.mark.parametrize("n", [4, 7, 10])
def test_interval_covers_the_median_with_its_stated_probability(n):
    """Counted over all equally likely patterns of being above the median."""
    result = pl.paired_difference(np.zeros(n), np.arange(n) + 1.0)
    k = int(result.interval[0])
    patterns = list(itertools.product((False, True), repeat=n))
    covered = np.mean([k <= sum(p) <= n - k for p in patterns])
    assert result.interval == (k, n + 1 - k) and result.confidence == pytest.approx(covered)


@pytest.mark.parametrize("draw", [np.random.Generator.standard_cauchy, np.random.Generator.standard_normal])
def test_coverage_by_simulation(draw):
    rng = np.random.default_rng(0)
    intervals = (pl.paired_difference(np.zeros(10), draw(rng, 10)).interval for _ in range(800))
    hits = [low <= 0 <= high for low, high in intervals]
    assert abs(np.mean(hits) - 0.9785) < 0.02


def test_swapping_the_arms_only_changes_the_sign():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9))
    one, two = pl.paired_difference(a, b), pl.paired_difference(b, a)
    assert one.median == -two.median and one.interval == (-two.interval[1], -two.interval[0])
    assert (one.p, one.confidence) == (two.p, two.confidence)


def test_equal_arms_have_no_difference():
    result = pl.paired_difference([5, 6, 7], [5, 6, 7])
    assert (result.median, result.interval, result.p) == (0, (0, 0), 1)
    mixed = pl.paired_difference([5, 6, 7, 8], [5, 5, 6, 7])  # a zero tells no sign
    assert mixed.p == pytest.approx(2 / 2**3)


# Censoring.


def test_run_that_never_dropped_counts_as_later_than_any():
    result = pl.paired_difference([100, 110, 120, 130, 140, 150], [None, 300, 300, INF, 300, 300])
    assert list(result.differences) == [INF, 190, 180, INF, 160, 150]
    assert (result.median, result.interval) == (185, (150, INF)) and result.censored == 2
    assert result.p == pytest.approx(2 / 2**6)
    assert str(result) == "drop: median 185 steps [150, inf] (6 pairs, 96.9 %, 2 censored), p = 0.03"


def test_pairs_without_any_drop_are_left_out_and_counted():
    result = pl.paired_difference([100, None, None, 120], [90, None, 80, 100])
    assert list(result.differences) == [-10, -INF, -20] and (result.n, result.censored, result.left_out) == (3, 1, 1)
    assert "3 pairs, 75.0 %, 1 censored, 1 left out" in str(result) and result.median == -20


def test_median_between_infinities_is_nan():
    result = pl.paired_difference([None, 1], [1, None])
    assert math.isnan(result.median) and result.interval == (-INF, INF)
    assert pl.paired_difference([1, 1, 1, 1], [2, None, None, None]).median == INF
    assert pl.paired_difference([1, 1], [2, None]).median == INF


def test_interval_holds_wherever_a_censored_run_would_drop():
    """The late control's partner stopped soon after it: +10 is possible, and the lower end allows for it."""
    control, changed = arms([100, 100, 100, 100, 100, 390], [150, 160, 170, 180, 190, None])
    result = pl.paired_difference(control, changed)
    assert result.median == 75 and result.interval == (10, INF)
    for beyond in (401, 500, 10_000):
        known = pl.paired_difference([100] * 5 + [390], [150, 160, 170, 180, 190, beyond])
        assert result.interval[0] <= known.interval[0] and known.interval[1] <= result.interval[1]
    turned = pl.paired_difference(changed, control)
    assert turned.median == -75 and turned.interval == (-INF, -10)


def test_run_stopped_before_its_partner_dropped_raises():
    control, changed = [Seeded(0, 350), Seeded(1, 100)], [Seeded(0, None, last=300), Seeded(1, 50)]
    with pytest.raises(ValueError, match="pair 0: one run stopped at step 300, before the other's drop at 350; record"):
        pl.paired_difference(control, changed)
    with pytest.raises(ValueError, match="pair 0: one run stopped at step 300"):
        pl.paired_difference(changed, control)


# Runs.


def test_runs_are_paired_by_seed_whatever_their_order():
    control, changed = arms([200, 300, 260], [100, 150, 90])
    result = pl.paired_difference(control, changed[::-1])
    assert list(result.differences) == [-100, -150, -170] and list(result.control) == [200, 300, 260]
    assert [b.config["train"]["seed"] for _, b in paired_by_seed(control[::-1], changed)] == [2, 1, 0]


def test_values_by_name_and_by_function():
    control = [Seeded(s, 100, peak=0.9 + 0.01 * s) for s in range(3)]
    changed = [Seeded(s, 100, peak=0.5) for s in range(3)]
    result = pl.paired_difference(control, changed, "peak collapse")
    assert result.median == pytest.approx(-0.41)
    assert str(result) == "peak collapse: median -0.41 [-0.42, -0.4] (3 pairs, 75.0 %), p = 0.2"
    assert pl.paired_difference(control, changed, "least collapse").median == 0
    assert pl.paired_difference(control, changed, "final collapse").median == 0

    def half_peak(run):
        return run.metrics.collapse.max() / 2

    halved = pl.paired_difference(control, changed, half_peak)
    assert halved.value == "half_peak" and halved.median == pytest.approx(-0.205)
    frames = [[run.metrics for run in arm] for arm in (control, changed)]
    assert pl.paired_difference(*frames, "peak collapse").median == result.median
    assert pl.paired_difference(control, changed, lambda run: None if run in changed else 1.0).median == INF


def test_steps_of_the_plateau_by_name():
    control, changed = arms([200, 300], [100, 150])
    assert pl.paired_difference(control, changed, "end").median == -125
    assert pl.paired_difference(control, changed, "start").median == -125  # here the loss lies on the level at first


def test_paired_differences_of_forked_runs(tmp_path):
    runs = {}
    for arm in ("control", "changed"):
        for seed in range(2):
            train = pl.TrainConfig(steps=3, batch_size=4, seed=seed)
            training = pl.train(pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=8, seed=seed)), TASK, train)
            eval_batch = TASK.sample(8, seed=1)
            path = tmp_path / f"{arm}-{seed}"
            runs[arm, seed] = pl.record(training, path, eval_batch, every=1, save_every=3, progress=False)
    control, changed = ([runs[arm, seed] for seed in range(2)] for arm in ("control", "changed"))
    assert pl.paired_difference(control, changed[::-1], "final loss").median == 0
    with pytest.raises(ValueError, match="drop needs at least 2 pairs in which one run reached it, got 0 of 2"):
        pl.paired_difference(control, changed)


@pytest.mark.parametrize(
    "control, changed, value, message",
    [
        ([1, 2], [1], "drop", "each control needs its changed run, got 2 and 1"),
        ([], [], "drop", "at least 2 pairs in which one run reached it, got 0 of 0"),
        ([1], [2], "drop", "at least 2 pairs in which one run reached it, got 1 of 1"),
        ([None, None, 3], [None, None, 4], "drop", "got 1 of 3"),
        ([1, math.nan], [1, 2], "drop", "drop of pair 1 is NaN"),
        (*arms([100, 200], [100, 200]), lambda run: math.nan, "the value of pair 0 is NaN"),
        ([Seeded(0, 100), Seeded(1, 100)], [Seeded(0, 90), Seeded(2, 90)], "drop", "the arms have different .* seeds"),
        ([Seeded(0, 100)], [Seeded(0, 90, model_seed=5)], "drop", "the arms have different .* seeds"),
        ([Seeded(0, 100), Seeded(0, 100)], [Seeded(0, 90), Seeded(0, 90)], "drop", "seeds are repeated"),
        (*arms([100, 200], [100, 200]), "dorp", "unknown value 'dorp'; did you mean 'drop'"),
        (*arms([100, 200], [100, 200]), "peak colapse", "unknown value 'peak colapse'; did you mean 'peak collapse'"),
        (*arms([100, 200], [100, 200]), "peak rows", "rows has a list at each step"),
        (*arms([100, 200], [100, 200]), "peak none", "none was recorded, but has no value at any step"),
    ],
)
def test_runs_that_cannot_be_compared_raise(control, changed, value, message):
    with pytest.raises(ValueError, match=message) as error:
        pl.paired_difference(control, changed, value)
    assert "\n" not in str(error.value)


def test_confidence_is_checked():
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95.0"):
        pl.paired_difference([1, 2], [1, 2], confidence=95.0)


# The figure.


def test_figure_joins_the_drops_of_each_pair():
    control, changed = arms([200, 300, 260], [100, 150, None])
    figure = pl.plots.counterfactual(control, changed[::-1], labels=("as it is", "scaled"))
    joined = [trace for trace in figure.data if (trace.name or "").startswith("pair ")]
    assert [list(t.x) for t in joined] == [[200, 100], [300, 150], [260, 400]]
    assert all(list(t.y) == ["as it is", "scaled"] for t in joined)
    assert [t.line.dash for t in joined] == ["solid", "solid", "dot"]
    assert list(joined[2].marker.symbol) == ["circle", "triangle-right-open"]
    assert joined[2].text[1] == "no drop by 400" and {t.yaxis for t in joined} == {"y2"}
    curves = [trace for trace in figure.data if trace not in joined]
    assert {t.yaxis for t in curves} == {"y"} and [t.name for t in curves if t.showlegend] == [
        "as it is, 3 runs: median, min to max",
        "scaled, 3 runs: median, min to max",
    ]
    (median,) = [t for t in curves if t.showlegend and t.legendgroup == "as it is"]
    assert list(median.y) == pd.concat([r.metrics.loss for r in control], axis=1).median(axis=1).tolist()
    assert [note.text for note in figure.layout.annotations] == ["loss (nats)", "drop of each pair"]
    json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_figure_accepts_any_metric_and_a_single_pair():
    figure = pl.plots.counterfactual(*arms([200], [100]), "collapse")
    assert [note.text for note in figure.layout.annotations] == ["collapse", "drop of each pair"]
    assert figure.layout.xaxis2.title.text == "step"


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([], []), {}, "at least one pair of runs"),
        (arms([1, 2], [1]), {}, "each control needs its changed run"),
        (arms([100], [50]), {"labels": ("a", "a")}, "different labels, got 'a' twice"),
        ((*arms([100], [50]), "los"), {}, "los was not recorded"),
    ],
)
def test_figure_raises_for_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        pl.plots.counterfactual(*arguments, **options)
