"""Change points: when each metric leaves its plateau level in each run, and in which order.

    onset_table = onsets([run0, run1, run2])
    print(onset_order(onset_table))

The change point is sought between the start of the plateau and the drop (`find_plateau`), and given in steps before the
drop. `RULES` has the rules by name: instances of `Bend` and `Crossing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from plateaulens._registry import look_up
from plateaulens.analysis.plateau import HasMetrics, find_plateau

METRICS = ("loss", "collapse", "attention_progress", "repetition", "accuracy")
MIN_POINTS = 8  # measurements in the window; fewer do not determine a level, a bend and a slope
MIN_BLOCKS = 10  # 1 of n shuffles of n blocks leaves the last one in place: fewer blocks would hide a late change


@dataclass(frozen=True)
class Bend:
    """Least-squares fit of y(t) = a + c max(0, t - onset)^power, plus a slope b t if `degree` is 1.

    The onset is the step with the smallest residual sum of squares (segmented regression of Hinkley 1971, JASA 66). It
    needs no threshold, does not change if the metric is scaled, shifted or negated, and does not come earlier merely
    because a metric is less noisy. All steps up to the last measurement but one are candidates, also between
    measurements; of more than 501 steps, 501 evenly spaced ones. The statistic is the share of the variance around the
    plateau's model (a, or a + b t) that the bend removes, R^2 = 1 - RSS(with) / RSS(without); it increases with the
    sup-F statistic for one unknown change point (Andrews 1993, Econometrica 61).

    A metric that drifts through the whole window has no level to leave: with degree 0 its onset is the first step of
    the window and means "at or before"; with degree 1 the drift belongs to the plateau, and the onset is where the
    metric departs from it. If the metric begins to move gradually, power 1 puts the onset later than the first
    movement, power 2 less so.

    Attributes:
        degree: Degree of the plateau's model: 0 for a level, 1 for a straight line.
        power: 1 for a line after the onset, 2 for a parabola.
    """

    degree: int = 0
    power: int = 1

    def __call__(
        self, steps: Float[np.ndarray, " step"], values: Float[np.ndarray, "step series"]
    ) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
        """Statistic and onset of every series."""
        span = int(steps[-2] - steps[0])  # no measurement could show a bend after the last but one
        candidates = np.unique(np.linspace(steps[0], steps[-2], min(span, 500) + 1).round())
        bends = np.maximum(0, steps[:, None] - candidates) ** self.power
        residuals = without_trend(steps, bends, self.degree)
        norm = np.linalg.norm(residuals, axis=0)
        is_bend = norm > 1e-6 * np.linalg.norm(bends, axis=0)  # next to a slope, a bend at the start is a line
        directions, candidates = residuals[:, is_bend] / norm[is_bend], candidates[is_bend]
        deviations = without_trend(steps, values, self.degree)
        share = (directions.T @ deviations) ** 2 / (deviations**2).sum(0)
        return share.max(0), candidates[share.argmax(0)]


@dataclass(frozen=True)
class Crossing:
    """First of `consecutive` measurements in a row that are more than `n_sigma` sigma from the level, all on one side.

    Level and sigma are mean and standard deviation over the first half of the window; the side is that of the last
    measurement. This is when a change can first be distinguished from the noise of the plateau: a less noisy metric
    crosses earlier than a noisier one that bends at the same step, and a drift in the first half increases sigma. The
    statistic is the largest deviation, in sigma, that `consecutive` measurements in a row exceed.

    Attributes:
        n_sigma: Threshold, in sigma.
        consecutive: Number of measurements in a row beyond the threshold.
        degree: Degree of the plateau's model, always 0: a level.
    """

    n_sigma: float = 3.0
    consecutive: int = 3
    degree: int = 0

    def __call__(
        self, steps: Float[np.ndarray, " step"], values: Float[np.ndarray, "step series"]
    ) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
        """Statistic and onset of every series."""
        half = values[: len(values) // 2]
        sigma = np.maximum(half.std(0, ddof=1), 1e-9 * np.ptp(values, axis=0))  # not 0 where the half is constant
        deviation = (values - half.mean(0)) / sigma
        deviation *= np.sign(deviation[-1])
        exceeded = np.lib.stride_tricks.sliding_window_view(deviation, self.consecutive, axis=0).min(-1)
        is_beyond = exceeded > self.n_sigma
        onset = np.where(is_beyond.any(0), steps[is_beyond.argmax(0)], np.nan)
        return exceeded.max(0), onset


Rule = Bend | Crossing
RuleName = Literal["level", "curve", "trend", "sigma"]
# "level" is the main rule; the others check that a conclusion does not depend on it.
RULES: dict[str, Rule] = {
    "level": Bend(),
    "curve": Bend(power=2),
    "trend": Bend(degree=1),
    "sigma": Crossing(),
}


@dataclass(frozen=True, eq=False)
class Onsets:
    """Change points of several runs.

    Attributes:
        table: One row per run (its index in the list) and metric: `start` and `drop` of the window, number of `points`
            measured in it, `onset` (step; NaN if the rule finds none), `lead` (drop - onset, in steps), `at_start`
            (whether the onset is the first step of the window, so that the true one may be earlier), `p` (p-value of
            the statistic under shuffled time) and `block` (number of measurements that were shuffled together).
        rule: Name of the rule.
        no_drop: Indices of the runs that were left out, because their loss never dropped or the start of their plateau
            is not known.
    """

    table: pd.DataFrame
    rule: str
    no_drop: tuple[int, ...]


def onsets(
    runs: Sequence[HasMetrics | pd.DataFrame],
    metrics: Sequence[str] = METRICS,
    *,
    rule: RuleName = "level",
    start: int | None = None,
    shuffles: int = 999,
    block: int | None = None,
    seed: int = 0,
    level: float | None = None,
    floor: float | None = None,
) -> Onsets:
    """Find when each metric of each run leaves its plateau, with a p-value from shuffled time.

    The window is from `find_plateau`'s start to its drop, both included; missing values are left out. The p-value is
    that of the rule's statistic among `shuffles` random orders of the same window, (1 + #{at least as large}) /
    (1 + shuffles) (Phipson and Smyth 2010). Measurements of one model a few steps apart are correlated, and if they
    were shuffled one by one, any slow fluctuation would seem a change; therefore whole blocks are shuffled. A block has
    3 (lag - 1) + 1 measurements, where lag is the first at which the autocorrelation of the n measurements in the first
    half of the window, without their straight line, is at most 1.96 / sqrt(n) (negative ones too). White noise gives
    blocks of 1, which is plain shuffling. There are always at least 10 blocks.

    A small p-value means that noise of this kind in another order rarely bends like this. A steady drift also has a
    small one, and so, at times, has very slow noise (if each value remembers 0.5 or 0.8 of the one before, 75
    measurements: p <= 0.05 in about 15 % and 20 % of windows without a change, instead of 35 % and 70 % under plain
    shuffling; 5 % for white noise). It is not the precision of an onset; `onset_order` gives intervals.

    Args:
        runs: Runs, or DataFrames of metrics together with `level` and `floor`.
        metrics: Names of recorded metrics with one number per step.
        rule: "level" (a level, then a line: `Bend`), "curve" (a level, then a parabola), "trend" (a line, then a
            steeper or flatter one), or "sigma" (first crossing of level +- 3 sigma: `Crossing`).
        start: First step of every window; by default the start of each run's plateau.
        shuffles: Number of random orders for the p-value.
        block: Number of measurements shuffled together; by default from the autocorrelation.
        seed: Seed of the shuffles.
        level: Loss of the plateau in nats; by default the task's analytic one.
        floor: Loss of the solved task in nats; by default the task's analytic one.

    Raises:
        ValueError: For an unknown rule, no runs, no run that dropped, a metric that was not recorded or is a list at
            each step, or fewer than 8 measurements of a metric in a run's window.
    """
    change_point_rule = look_up("rule", rule, RULES)
    if not runs or not metrics:
        raise ValueError(f"onsets need at least one run and one metric, got {len(runs)} and {len(metrics)}")
    if shuffles < 1 or (block is not None and block < 1):
        raise ValueError(f"shuffles and block must be at least 1, got {shuffles} and {block}")
    rows, no_drop = [], []
    for i, run in enumerate(runs):
        plateau = find_plateau(run, level, floor)
        first = plateau.start if start is None else start
        if plateau.drop is None or first is None:
            no_drop.append(i)
            continue
        recorded = run if isinstance(run, pd.DataFrame) else run.metrics
        for metric in dict.fromkeys(metrics):
            series = _in_window(recorded, metric, i, first, plateau.drop)
            steps, values = series.index.to_numpy(float), series.to_numpy(float)
            length = _block_length(steps, values) if block is None else block
            onset, p = _onset(change_point_rule, steps, values, shuffles, length, seed)
            window = {"start": first, "drop": plateau.drop, "points": len(series)}
            result = {"onset": onset, "lead": plateau.drop - onset, "at_start": onset == steps[0]}
            rows.append({"run": i, "metric": metric, **window, **result, "p": p, "block": length})
    if not rows:
        raise ValueError(
            f"none of the {len(runs)} runs dropped from a plateau whose start was recorded; train for longer, or pass "
            "level= and floor=, or start="
        )
    return Onsets(pd.DataFrame(rows).set_index(["run", "metric"]), rule, tuple(no_drop))


def _in_window(metrics: pd.DataFrame, metric: str, run: int, first: int, last: int) -> "pd.Series[float]":
    if metric not in metrics:
        raise ValueError(f"{metric} was not recorded in run {run}; choose from {list(metrics)}")
    values = metrics[metric].dropna().sort_index()
    if values.map(np.ndim).gt(0).any():
        raise ValueError(f"{metric} has a list at each step, not a number; onsets need one number a step")
    values = values.loc[first:last]
    if len(values) < MIN_POINTS:
        raise ValueError(
            f"run {run} has {len(values)} measurements of {metric} between steps {first} and {last}; "
            f"a change point needs {MIN_POINTS}: record with a smaller every="
        )
    return values


def _onset(
    rule: Rule,
    steps: Float[np.ndarray, " step"],
    values: Float[np.ndarray, " step"],
    shuffles: int,
    block: int,
    seed: int,
) -> tuple[float, float]:
    """Onset (NaN for none) and p-value of one series."""
    deviations = without_trend(steps, values[:, None], rule.degree)
    if np.ptp(values) == 0 or np.abs(deviations).max() <= 1e-9 * np.ptp(values):  # constant, or straight
        return np.nan, 1.0
    order = shuffled_blocks(len(values), block, shuffles, np.random.default_rng(seed))
    statistic, onset = rule(steps, np.concatenate([deviations, deviations[order, 0]], axis=1))
    as_large = statistic[1:] >= statistic[0] - 1e-9 * abs(statistic[0])  # rounding does not make an equal one smaller
    return float(onset[0]), float((1 + as_large.sum()) / (1 + shuffles))


def without_trend(
    steps: Float[np.ndarray, " step"], values: Float[np.ndarray, "step series"], degree: int
) -> Float[np.ndarray, "step series"]:
    """Residuals of each series from its least-squares mean (degree 0) or straight line (degree 1)."""
    if degree == 0:
        return values - values.mean(0)
    basis = np.stack([np.ones_like(steps), steps - steps.mean()], axis=1)
    return values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]


def shuffled_blocks(n: int, block: int, shuffles: int, rng: np.random.Generator) -> Int[np.ndarray, "{n} {shuffles}"]:
    """Random orders of 0..n-1, one per column, in which blocks of `block` neighbors stay together."""
    block_of = np.arange(n) // block
    ranks = rng.permuted(np.tile(np.arange(block_of[-1] + 1), (shuffles, 1)), axis=1)
    return np.argsort(ranks[:, block_of], axis=1, kind="stable").T


def _block_length(steps: Float[np.ndarray, " step"], values: Float[np.ndarray, " step"]) -> int:
    """The block length of `onsets`."""
    half = len(values) // 2
    residuals = without_trend(steps[:half], values[:half, None], 1)[:, 0]
    correlation = np.correlate(residuals, residuals, "full")[half - 1 :]
    is_small = correlation <= 1.96 / np.sqrt(half) * correlation[0]
    is_small[0] = False
    lag = int(is_small.argmax()) if is_small.any() else half
    return max(1, min(3 * (lag - 1) + 1, len(values) // MIN_BLOCKS))


@dataclass(frozen=True, eq=False)
class OnsetOrder:
    """The order in which metrics leave their plateau.

    Attributes:
        lead: One row per metric, the earliest first: median `lead` in steps before the drop with bootstrap interval
            `low`, `high`, the number of `runs` with an onset, and the number `at_start` of those whose lead is a lower
            bound.
        difference: One row per ordered pair (`first`, `second`): median of lead of first - lead of second in steps
            (positive: first moves earlier), `low`, `high`, and the number of `runs` that have both.
        before: Share of those runs in which the row's metric moves strictly before the column's.
        leads: The lead of each run (row) and metric (column); NaN if there is no onset.
        at_start: Which of them are lower bounds.
        rule: Name of the rule.
        confidence: Confidence level of the intervals.
        no_drop: Number of runs that were left out because they never dropped.
    """

    lead: pd.DataFrame
    difference: pd.DataFrame
    before: pd.DataFrame
    leads: pd.DataFrame
    at_start: pd.DataFrame
    rule: str
    confidence: float
    no_drop: int

    def __str__(self) -> str:
        lines = [f"median steps before the drop, {self.confidence:.0%} intervals over runs (rule {self.rule!r})"]
        width = max(map(len, self.lead.index))
        for name, row in self.lead.iterrows():
            early = f", {row.at_start:.0f} already moving when the window starts" if row.at_start else ""
            value = f"{row.lead:5.0f} [{row.low:.0f}, {row.high:.0f}]" if row.runs else "no onset"
            lines.append(f"{name:{width}} {value} ({row.runs:.0f} of {len(self.leads)} runs{early})")
        if self.no_drop:
            lines.append(f"{self.no_drop} more runs never dropped and are left out")
        return "\n".join(lines)


def onset_order(
    onset_table: Onsets, *, alpha: float = 0.05, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> OnsetOrder:
    """Compute the order in which metrics leave their plateau, with percentile bootstrap intervals over runs.

    Runs are resampled with replacement, all metrics of a run together (Efron and Tibshirani 1993, chapter 13). Medians
    are taken, so that one late run does not decide. With fewer than about eight runs percentile intervals are too
    narrow.

    Args:
        onset_table: The result of `onsets`.
        alpha: Onsets with a larger p-value are left out, since without a bend the best fit can be anywhere; 1 keeps
            all.
        confidence: Confidence level of the intervals.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: For a confidence outside 0..1 or fewer than 1 resample.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must be between 0 and 1 and resamples positive, got {confidence}, {resamples}")
    table = onset_table.table
    names = list(table.index.unique("metric"))
    leads = table.lead.where(table.p <= alpha).unstack()[names]
    early = table.at_start.where(table.p <= alpha, False).astype(bool).unstack()[names]

    def summarize(values: "pd.Series[float]") -> dict[str, float]:
        known = values.dropna().to_numpy()
        if not len(known):
            return {"lead": np.nan, "low": np.nan, "high": np.nan, "runs": 0}
        drawn = np.random.default_rng(seed).integers(len(known), size=(resamples, len(known)))
        low, high = np.quantile(np.median(known[drawn], axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
        return {"lead": float(np.median(known)), "low": low, "high": high, "runs": len(known)}

    lead = pd.DataFrame({name: {**summarize(leads[name]), "at_start": early[name].sum()} for name in names}).T
    lead = lead.sort_values("lead", ascending=False, kind="stable").rename_axis("metric")
    pairs = list(permutations(lead.index, 2))
    gaps = {(a, b): leads[a] - leads[b] for a, b in pairs}
    rows = [summarize(gaps[pair]) for pair in pairs]
    index = pd.MultiIndex.from_arrays([[pair[i] for pair in pairs] for i in (0, 1)], names=["first", "second"])
    difference = pd.DataFrame(rows, index, ["lead", "low", "high", "runs"])
    before = pd.DataFrame(np.nan, lead.index, lead.index)
    for (a, b), gap in gaps.items():
        before.loc[a, b] = (gap.dropna() > 0).mean()
    difference = difference.rename(columns={"lead": "difference"})
    return OnsetOrder(lead, difference, before, leads, early, onset_table.rule, confidence, len(onset_table.no_drop))
