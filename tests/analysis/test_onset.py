"""`onsets` and `onset_order` on curves with known change points, and on noise without one."""

import json
from inspect import unwrap

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import plateaulens as pl
from plateaulens.analysis.onset import RULES, Onsets, shuffled_blocks

LEVEL, FLOOR, BEND, DROP = 2.0, 1.0, 180, 200
KNOWN = {"level": LEVEL, "floor": FLOOR}


def bend(steps, at, power=1):
    """0 until `at`, then up to 1 at the drop."""
    return np.maximum(0, steps - at) ** power / (DROP - at) ** power


def run_of(every=2, **metrics):
    """A run whose loss reaches its level by step 6, leaves it at 180 and is half way down at 200."""
    steps = np.arange(0, 251, every)
    loss = LEVEL + np.exp(-steps / 4) - np.clip((steps - BEND) / 39, 0, 1)
    return pd.DataFrame({"loss": loss, **{k: v(steps) for k, v in metrics.items()}}, pd.Index(steps, name="step"))


def noisy(at, noise, seed, power=1):
    return lambda steps: bend(steps, at, power) + noise * np.random.default_rng(seed).standard_normal(len(steps))


def found(runs, metrics, **options):
    return pl.analysis.onsets(runs, metrics, **{"shuffles": 99, **KNOWN, **options})


# Known change points.


@pytest.mark.parametrize("every", [1, 2, 5, 10])
@pytest.mark.parametrize("at", [60, 121, 163])
def test_bend_without_noise_is_found_exactly(every, at):
    run = run_of(every, rise=lambda t: bend(t, at), fall=lambda t: 3 - 7 * bend(t, at))
    table = found([run], ["rise", "fall"]).table
    assert (table.onset == at).all() and (table.lead == DROP - at).all()
    assert (table.start == (6 if every in (1, 2) else -(-6 // every) * every)).all() and (table["drop"] == DROP).all()
    assert (table.p <= 0.05).all() and not table.at_start.any()


@pytest.mark.parametrize("rule, power", [("level", 1), ("curve", 2)])
@pytest.mark.parametrize("every, noise, within", [(1, 0.02, 2), (2, 0.1, 8), (5, 0.02, 4), (5, 0.1, 12)])
def test_bend_in_noise_is_found_without_bias(rule, power, every, noise, within):
    at = 120
    runs = [run_of(every, x=noisy(at, noise, seed, power)) for seed in range(40)]
    error = found(runs, ["x"], rule=rule).table.onset - at
    assert error.abs().median() <= within * power  # a parabola starts flatter than a line
    assert abs(error.median()) <= within * power / 2


def test_drift_has_no_level_and_trend_finds_its_end():
    at = 150
    run = run_of(drift=lambda t: t / 100, bent=lambda t: t / 100 + bend(t, at))
    level, trend = (found([run], ["drift", "bent"], rule=rule).table.loc[0] for rule in ("level", "trend"))
    assert level.onset["drift"] == 6 and level.at_start["drift"] and level.p["drift"] <= 0.02
    assert np.isnan(trend.onset["drift"]) and trend.p["drift"] == 1
    assert trend.onset["bent"] == at and not trend.at_start["bent"]
    assert level.onset["bent"] < at  # a level and a line have to share a slow drift


def test_noise_delays_a_crossing_but_not_a_bend():
    at = 100
    runs = {n: [run_of(x=noisy(at, n, seed)) for seed in range(30)] for n in (0.005, 0.1)}
    onset = {(n, rule): found(runs[n], ["x"], rule=rule).table.onset.median() for n in runs for rule in RULES}
    assert at < onset[0.005, "sigma"] < at + 10 < at + 25 < onset[0.1, "sigma"]
    assert max(abs(onset[n, "level"] - at) for n in runs) < 5


def test_crossing_is_the_first_of_three_beyond_three_sigma():
    steps = np.arange(0, 251, 2)
    wave = np.where(np.arange(len(steps)) % 2, 1.0, -1.0)  # sigma is 1 but for the sample's n - 1
    wave[[60, 61]], wave[[80, 81, 82]] = 5, 5
    wave[83:] = 5
    table = found([run_of(x=lambda t: wave)], ["x"], rule="sigma").table
    assert table.onset.item() == steps[80]


# The null.


@pytest.mark.parametrize("rule", RULES)
def test_p_values_are_uniform_when_nothing_changes(rule):
    rng = np.random.default_rng(0)
    noise = {f"x{i}": lambda t: rng.standard_normal(len(t)) for i in range(200)}
    p = found([run_of(**noise)], list(noise), rule=rule, shuffles=199).table.p
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert (p <= 0.05).mean() < 0.12


def test_blocks_lower_false_positives_for_slow_noise():
    rng = np.random.default_rng(0)

    def slow(t):
        """Each value remembers 0.8 of the one before."""
        x = rng.standard_normal(len(t))
        for i in range(1, len(x)):
            x[i] += 0.8 * x[i - 1]
        return x

    run = run_of(1, **{f"x{i}": slow for i in range(150)})
    names = [name for name in run if name != "loss"]
    plain, blocks = (found([run], names, block=block, shuffles=199).table for block in (1, None))
    assert (plain.p <= 0.05).mean() > 0.5
    assert (blocks.p <= 0.05).mean() < (plain.p <= 0.05).mean() / 2
    assert blocks.block.median() > 3


def test_white_noise_is_shuffled_one_by_one():
    rng = np.random.default_rng(0)
    noise = {f"x{i}": lambda t: rng.standard_normal(len(t)) for i in range(50)}
    assert (found([run_of(**noise)], list(noise)).table.block == 1).mean() > 0.9


@pytest.mark.parametrize("n, block", [(10, 1), (10, 3), (9, 3), (4, 7)])
def test_shuffled_blocks_keep_neighbors_together(n, block):
    orders = shuffled_blocks(n, block, 50, np.random.default_rng(0))
    assert (np.sort(orders, axis=0) == np.arange(n)[:, None]).all()
    for order in orders.T:
        follows = dict(zip(order[:-1], order[1:], strict=True))
        assert all(follows[i] == i + 1 for i in range(n - 1) if i // block == (i + 1) // block)
    assert len({tuple(order) for order in orders.T}) > 1 or block >= n


# What must not matter.


@pytest.mark.parametrize("rule", RULES)
def test_units_and_sign_of_a_metric_change_nothing(rule):
    x = noisy(120, 0.05, 0)
    run = run_of(x=x, scaled=lambda t: 1e6 * x(t) - 3, turned=lambda t: 5 - 1e-3 * x(t))
    table = found([run], ["x", "scaled", "turned"], rule=rule).table.loc[0]
    assert table.onset.nunique() == table.p.nunique() == 1 and 80 < table.onset["x"] < 160


def test_onsets_are_independent_of_other_metrics_and_run_order():
    runs = [run_of(x=noisy(a, 0.1, a), y=noisy(a + 20, 0.1, a + 1)) for a in (90, 120)]
    alone, both = found(runs, ["y"]).table, found(runs[::-1], ["x", "y"]).table
    assert alone.loc[(0, "y")].equals(both.loc[(1, "y")]) and alone.loc[(1, "y")].equals(both.loc[(0, "y")])


def test_missing_values_equal_unmeasured_steps():
    run = run_of(2, x=noisy(120, 0.1, 0))
    gaps = run.copy()
    gaps.loc[gaps.index % 6 > 0, "x"] = np.nan
    coarse = run[run.index % 6 == 0]
    assert found([gaps], ["x"]).table.onset.item() == found([coarse], ["x"]).table.onset.item()
    assert found([gaps], ["x"]).table.points.item() == 33


# What there is nothing to say about.


@pytest.mark.parametrize("rule", RULES)
def test_constant_metric_has_no_onset(rule):
    run = run_of(still=lambda t: np.full(len(t), 0.1), x=lambda t: bend(t, 150))
    result = found([run] * 3, ["still", "x"], rule=rule)
    assert result.table.onset.xs("still", level="metric").isna().all()
    assert (result.table.p.xs("still", level="metric") == 1).all()
    order = pl.onset_order(result, alpha=1.0)
    assert order.lead.index[-1] == "still" and order.lead.runs["still"] == 0
    assert "still no onset (0 of 3 runs)" in str(order) and np.isnan(order.before.loc["x", "still"])


def test_constant_first_half_gives_an_immediate_crossing():
    run = run_of(x=lambda t: (t > 190).astype(float))
    assert found([run], ["x"], rule="sigma").table.onset.item() == 192


def test_runs_without_a_drop_are_left_out_and_counted():
    runs = [run_of(x=noisy(100, 0.01, 0)), run_of(x=noisy(100, 0.01, 0)).loc[:150], run_of(x=noisy(100, 0.01, 1))]
    result = found(runs, ["x"])
    assert result.no_drop == (1,) and list(result.table.index.unique("run")) == [0, 2]
    assert str(pl.onset_order(result)).endswith("1 more runs never dropped and are left out")


def test_run_recorded_within_its_plateau_needs_start():
    late = run_of(x=noisy(100, 0.01, 0)).loc[60:]
    late.loc[60, "loss"] = LEVEL - 0.05  # noise: below the plateau, so that nobody sees it begin
    assert pl.find_plateau(late, **KNOWN).start is None
    assert found([late], ["x"], start=70).table.onset.item() == pytest.approx(100, abs=2)
    with pytest.raises(ValueError, match="none of the 1 runs dropped from a plateau.* start="):
        found([late], ["x"])


@pytest.mark.parametrize(
    "runs, metrics, options, message",
    [
        ([], ["loss"], {}, "at least one run and one metric, got 0 and 1"),
        ([run_of()], [], {}, "at least one run and one metric, got 1 and 0"),
        ([run_of()], ["loss"], {"rule": "levle"}, "unknown rule 'levle'; did you mean 'level'"),
        ([run_of()], ["x"], {}, r"x was not recorded in run 0; choose from \['loss'\]"),
        ([run_of(x=lambda t: [[1, 2]] * len(t))], ["x"], {}, "x has a list at each step"),
        ([run_of().loc[:150]], ["loss"], {}, "none of the 1 runs dropped"),
        ([run_of(2), run_of(50)], ["loss"], {}, "run 1 has 4 measurements of loss between steps 50 and 200; .*every="),
        ([run_of()], ["loss"], {"start": 190}, "run 0 has 6 measurements"),
        ([run_of()], ["loss"], {"level": None}, "level and floor are not known"),
        ([run_of()], ["loss"], {"shuffles": 0}, "shuffles and block must be at least 1"),
    ],
)
def test_invalid_arguments_of_onsets_raise(runs, metrics, options, message):
    with pytest.raises(ValueError, match=message):  # without the runtime check of types
        unwrap(pl.analysis.onsets)(runs, metrics, **{"shuffles": 99, **KNOWN, **options})


# The order.


def test_order_and_leads_of_known_onsets_are_recovered():
    rng = np.random.default_rng(0)
    jitter = rng.integers(-10, 11, size=12)
    runs = [
        run_of(
            every=5, b=noisy(150 + j, 0.05, 3 * k), a=noisy(80 + j, 0.05, 3 * k + 1), c=noisy(160 + j, 0.05, 3 * k + 2)
        )
        for k, j in enumerate(jitter)
    ]
    order = pl.onset_order(found(runs, ["b", "a", "c", "loss"]))
    assert list(order.lead.index) == ["a", "b", "c", "loss"]
    for name, lead in {"a": 120, "b": 50, "c": 40, "loss": 20}.items():
        row = order.lead.loc[name]
        assert row.low - 3 <= lead <= row.high + 3 and row.low <= row.lead <= row.high and row.runs == 12
    gap = order.difference.loc[("a", "b")]
    assert gap.low <= 70 <= gap.high and gap.high - gap.low < 15  # jitter that a run's metrics share cancels
    assert order.before.loc["a", "b"] == 1 and order.before.loc["b", "a"] == 0


def test_order_equals_one_worked_out_by_hand():
    leads = {"a": [10, 30, 20, 40], "b": [10, 10, 25, np.nan]}
    rows = [
        {"run": i, "metric": name, "lead": lead, "at_start": lead == 40, "p": 0.2 if lead == 30 else 0.01}
        for name, values in leads.items()
        for i, lead in enumerate(values)
    ]
    result = Onsets(pd.DataFrame(rows).set_index(["run", "metric"]), "level", ())
    every = pl.onset_order(result, alpha=1.0)
    assert every.lead.lead.to_dict() == {"a": 25, "b": 10} and every.lead.runs.to_dict() == {"a": 4, "b": 3}
    assert every.lead.at_start.to_dict() == {"a": 1, "b": 0}
    assert every.difference.difference.to_dict() == {("a", "b"): 0, ("b", "a"): 0}  # of 0, 20, -5
    assert every.difference.loc[("a", "b"), ["low", "high"]].tolist() == [-5, 20]
    assert every.before.loc["a", "b"] == pytest.approx(1 / 3) == every.before.loc["b", "a"]
    sure = pl.onset_order(result)
    assert sure.lead.runs["a"] == 3 and sure.lead.lead["a"] == 20 and np.isnan(sure.leads.loc[1, "a"])


def test_differences_are_antisymmetric():
    runs = [run_of(x=noisy(100 + 5 * s, 0.1, s), y=noisy(120 + 3 * s, 0.1, s + 50)) for s in range(9)]
    wide, narrow = (pl.onset_order(found(runs, ["x", "y"]), confidence=c) for c in (0.95, 0.5))
    xy, yx = wide.difference.loc[("x", "y")], wide.difference.loc[("y", "x")]
    assert (xy.difference, xy.low, xy.high) == pytest.approx((-yx.difference, -yx.high, -yx.low), abs=1.5)
    assert (wide.lead.low <= narrow.lead.low).all() and (narrow.lead.high <= wide.lead.high).all()


def test_bootstrap_intervals_have_about_their_nominal_coverage():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(150):
        leads = 50 + 10 * rng.standard_normal(10)
        rows = [{"run": i, "metric": "x", "lead": lead, "at_start": False, "p": 0.0} for i, lead in enumerate(leads)]
        row = pl.onset_order(Onsets(pd.DataFrame(rows).set_index(["run", "metric"]), "level", ()), resamples=300).lead
        hits += row.low.item() <= 50 <= row.high.item()
    assert 0.88 <= hits / 150 <= 1


def test_single_metric_has_no_differences():
    order = pl.onset_order(found([run_of()], ["loss"]))
    assert order.difference.empty and list(order.difference) == ["difference", "low", "high", "runs"]
    assert order.lead.loc["loss", ["lead", "low", "high"]].tolist() == [20, 20, 20]


def test_same_seed_gives_the_same_result():
    runs = [run_of(x=noisy(150, 1.0, s)) for s in range(4)]
    one, two = (found(runs, ["x"], shuffles=49) for _ in range(2))
    assert one.table.equals(two.table)
    assert pl.onset_order(one).lead.equals(pl.onset_order(two).lead)
    other = found(runs, ["x"], shuffles=49, seed=1)
    assert not other.table.p.equals(one.table.p) and other.table.onset.equals(one.table.onset)


def test_invalid_confidence_or_resamples_raise():
    result = found([run_of()], ["loss"])
    for options in ({"confidence": 1.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            pl.onset_order(result, **options)


def test_recorded_run_supplies_its_levels(tmp_path):
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=8))
    run = pl.Run.create(tmp_path / "run", task=task, model=model, train=pl.TrainConfig(steps=100))
    high, low = task.loss_plateau(), task.loss_floor()
    for step in range(101):
        loss = high + np.exp(-step / 2) - (high - low) * min(1, max(0, step - 60) / 29)
        run.log(step, {"loss": loss, "accuracy": min(1, max(0.2, 0.2 + (step - 50) / 40))})
    table = pl.analysis.onsets([run], ["loss", "accuracy"], shuffles=99).table
    assert table["drop"].tolist() == [75, 75] and table.onset.tolist() == pytest.approx([60, 50], abs=1)


# The figure.


def test_figure_shows_every_lead_with_medians_and_intervals():
    runs = [run_of(collapse=noisy(100 + 9 * s, 0.02, s), drift=lambda t: t * 1.0) for s in range(5)]
    still = [run.assign(still=1.0) for run in runs]
    order = pl.onset_order(found(still, ["loss", "collapse", "drift", "still"]))
    figure = pl.plots.onset(order)
    traces = {trace.name: trace for trace in figure.data}
    for name, row in order.lead.iterrows():
        dots, median = traces[f"{name}, runs"], traces[f"{name}, median"]
        assert list(dots.x) == order.leads[name].dropna().tolist()
        if row.runs:
            assert list(median.x) == [row.lead]
            ends = median.x[0] + median.error_x.array[0], median.x[0] - median.error_x.arrayminus[0]
            assert ends == pytest.approx((row.high, row.low))
    assert set(traces["drift, runs"].marker.symbol) == {"triangle-left"}
    assert set(traces["collapse, runs"].marker.symbol) == {"circle"}
    assert [t.y[0] for t in figure.data if "median" in t.name] == list(order.lead.index)
    json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
