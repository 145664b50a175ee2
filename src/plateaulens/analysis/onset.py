"""Which metric leaves its plateau first: a change point for every metric and run, and their order.

    found = onsets([run0, run1, run2])
    print(onset_order(found))

Time is aligned to each run's drop (`find_plateau`); between the plateau's start and the drop a metric is fitted
by a level and what follows it. `RULES` names the rules, `Bend` and `Crossing` say what they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from plateaulens._registry import look_up
from plateaulens.analysis.plateau import find_plateau

METRICS = ("loss", "collapse", "attention_progress", "repetition", "accuracy")
FEWEST = 8  # measurements in the window, below which a level, a bend and a slope say nothing
BLOCKS = 10  # with n blocks chance leaves the last one in place in 1 of n shuffles: fewer would hide a late change


@dataclass(frozen=True)
class Bend:
    """Least squares of y(t) = a + c max(0, t - onset)^power, with a slope b t besides when `degree` is 1.

    The onset is the step with the smallest residual sum of squares, so it needs no threshold, is the same for a y + b
    of either sign, and does not come earlier merely because a metric is less noisy. Every step up to the last
    measurement but one is tried, also between measurements; of more than 501 steps 501, evenly spaced. The statistic
    is the share of the variance around the plateau's model (a, or a + b t) that the bend removes,
    R^2 = 1 - RSS(with) / RSS(without); it grows with the sup-F statistic of Andrews (1993, Econometrica 61) for one
    unknown change point, of the segmented regression of Hinkley (1971, JASA 66).

    What it means for a slow drift: with degree 0 a metric that moves all along has no level to leave, and its
    onset is the first step of the window, which reads "at or before"; with degree 1 the drift is the plateau's
    own and the onset is where the metric departs from it. A gradual start, one that is curved rather than bent,
    puts the onset of power 1 later than the first movement, that of power 2 less so.
    """

    degree: int = 0
    power: int = 1

    def __call__(
        self, steps: Float[np.ndarray, " step"], values: Float[np.ndarray, "step series"]
    ) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
        """Statistic and onset of every series."""
        span = int(steps[-2] - steps[0])  # a bend after the last measurement but one has no point to show it
        candidates = np.unique(np.linspace(steps[0], steps[-2], min(span, 500) + 1).round())
        bends = np.maximum(0, steps[:, None] - candidates) ** self.power
        rest = without_trend(steps, bends, self.degree)
        norm = np.linalg.norm(rest, axis=0)
        seen = norm > 1e-6 * np.linalg.norm(bends, axis=0)  # with a slope, a bend at the start is no bend
        rest, candidates = rest[:, seen] / norm[seen], candidates[seen]
        flat = without_trend(steps, values, self.degree)
        share = (rest.T @ flat) ** 2 / (flat**2).sum(0)
        return share.max(0), candidates[share.argmax(0)]


@dataclass(frozen=True)
class Crossing:
    """First of `running` measurements in a row that lie more than `k` sigma from the level, all on one side.

    Level and sigma are mean and standard deviation over the first half of the window, the side is that of the
    last measurement. This is when a change can first be told from the plateau's own noise, so a quieter metric
    crosses earlier than a noisier one that bends at the same step, and a drift in the first half widens sigma.
    The statistic is the largest deviation, in sigma, that `running` measurements in a row exceed.
    """

    k: float = 3.0
    running: int = 3
    degree: int = 0

    def __call__(
        self, steps: Float[np.ndarray, " step"], values: Float[np.ndarray, "step series"]
    ) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
        """Statistic and onset of every series."""
        half = values[: len(values) // 2]
        sigma = np.maximum(half.std(0, ddof=1), 1e-9 * np.ptp(values, axis=0))  # a constant half is left at once
        away = (values - half.mean(0)) / sigma
        away *= np.sign(away[-1])
        held = np.lib.stride_tricks.sliding_window_view(away, self.running, axis=0).min(-1)
        onset = np.where((held > self.k).any(0), steps[(held > self.k).argmax(0)], np.nan)
        return held.max(0), onset


Rule = Bend | Crossing
# "level": the rule of this page; the others are the check that the answer is not the rule's.
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
        table: a row per run (its place in the list) and metric: `start` and `drop` of the window, `points`
            measured in it, `onset` (step; NaN when the rule finds none), `lead` (drop - onset, in steps),
            `at_start` (the onset is the first step of the window: it may lie earlier), `p` (of the statistic
            under shuffled time) and `block` (measurements that were shuffled together).
        rule: name of the rule.
        no_drop: places of the runs that were left out: their loss never dropped, or where their plateau starts is not
            known.
    """

    table: pd.DataFrame
    rule: str
    no_drop: tuple[int, ...]


def onsets(
    runs: Sequence[Any],
    metrics: Sequence[str] = METRICS,
    *,
    rule: str = "level",
    start: int | None = None,
    shuffles: int = 999,
    block: int | None = None,
    seed: int = 0,
    level: float | None = None,
    floor: float | None = None,
) -> Onsets:
    """When each metric of each run leaves its plateau, by a change-point rule, with a null from shuffled time.

    The window is `find_plateau`'s start to drop, both included; missing values are left out. The p-value is that
    of the rule's statistic among `shuffles` random orders of the same window, (1 + #{as large}) / (1 + shuffles)
    (Phipson and Smyth 2010). Measurements of one model a few steps apart fluctuate together, and shuffling
    them one by one would call any slow fluctuation a change; so whole blocks are shuffled. With the lag at which
    the autocorrelation over the first half of the window, without its straight line, falls to 1.96 / sqrt(n) or below
    (a negative one too), n the measurements in that half, a block has 3 (lag - 1) + 1 measurements (1 for white noise,
    which is plain shuffling), but there are at least 10 blocks.

    A small p says that such noise in another order seldom bends like this. A steady drift has a small p too, and
    so, at times, has very slow noise (each value remembering 0.5 or 0.8 of the one before, 75 measurements: p <=
    0.05 in about 15 % and 20 % of windows without a change, instead of 35 % and 70 % under plain shuffling; 5 % for
    white noise). How well an onset is known it does not say: for that there are the intervals of `onset_order`.

    Args:
        runs: Runs, or metrics frames together with `level` and `floor`.
        metrics: recorded columns, one number a step each.
        rule: "level" (a level, then a line: `Bend`), "curve" (then a parabola), "trend" (a line, then a
            steeper or flatter one), or "sigma" (first crossing of level +- 3 sigma: `Crossing`).
        start: first step of every window; the plateau's start of each run unless given.
        shuffles: random orders for the p-value.
        block: measurements shuffled together; from the autocorrelation unless given.
        seed: of the shuffles.
        level: the plateau's loss in nats; the task's analytic one unless given.
        floor: the loss of the solved task in nats; likewise.

    Raises:
        ValueError: for an unknown rule, no runs, no run that dropped, a metric that was not recorded or is
            a list at each step, or fewer than 8 measurements of a metric in a run's window.
    """
    find, rows, no_drop = look_up("rule", rule, RULES), [], []
    if not runs or not metrics:
        raise ValueError(f"onsets need at least one run and one metric, got {len(runs)} and {len(metrics)}")
    if shuffles < 1 or (block is not None and block < 1):
        raise ValueError(f"shuffles and block must be at least 1, got {shuffles} and {block}")
    for i, run in enumerate(runs):
        plateau = find_plateau(run, level, floor)
        first = plateau.start if start is None else start
        if plateau.drop is None or first is None:
            no_drop.append(i)
            continue
        recorded = run if isinstance(run, pd.DataFrame) else run.metrics
        for metric in dict.fromkeys(metrics):
            series = _series(recorded, metric, i).loc[first : plateau.drop]
            if len(series) < FEWEST:
                raise ValueError(
                    f"run {i} has {len(series)} measurements of {metric} between steps {first} and "
                    f"{plateau.drop}; a change point needs {FEWEST}: record with a smaller every="
                )
            steps, values = series.index.to_numpy(float), series.to_numpy(float)
            length = _memory(steps, values) if block is None else block
            onset, p = _onset(find, steps, values, shuffles, length, seed)
            window = {"start": first, "drop": plateau.drop, "points": len(series)}
            found = {"onset": onset, "lead": plateau.drop - onset, "at_start": onset == steps[0]}
            rows.append({"run": i, "metric": metric, **window, **found, "p": p, "block": length})
    if not rows:
        raise ValueError(
            f"none of the {len(runs)} runs dropped from a plateau whose start was recorded; train for longer, or pass "
            "level= and floor=, or start="
        )
    return Onsets(pd.DataFrame(rows).set_index(["run", "metric"]), rule, tuple(no_drop))


def _series(metrics: pd.DataFrame, metric: str, run: int) -> "pd.Series[float]":
    if metric not in metrics:
        raise ValueError(f"{metric} was not recorded in run {run}; choose from {list(metrics)}")
    values = metrics[metric].dropna().sort_index()
    if values.map(np.ndim).gt(0).any():
        raise ValueError(f"{metric} has a list at each step, not a number; onsets need one number a step")
    return values


def _onset(
    find: Rule,
    steps: Float[np.ndarray, " step"],
    values: Float[np.ndarray, " step"],
    shuffles: int,
    block: int,
    seed: int,
) -> tuple[float, float]:
    """Onset (NaN for none) and p-value of one series."""
    flat = without_trend(steps, values[:, None], find.degree)
    if np.ptp(values) == 0 or np.abs(flat).max() <= 1e-9 * np.ptp(values):  # constant, or straight
        return np.nan, 1.0
    order = shuffled_blocks(len(values), block, shuffles, np.random.default_rng(seed))
    statistic, onset = find(steps, np.concatenate([flat, flat[order, 0]], axis=1))
    as_large = statistic[1:] >= statistic[0] - 1e-9 * abs(statistic[0])  # the same order in another sum is not larger
    return float(onset[0]), float((1 + as_large.sum()) / (1 + shuffles))


def without_trend(
    steps: Float[np.ndarray, " step"], values: Float[np.ndarray, "step series"], degree: int
) -> Float[np.ndarray, "step series"]:
    """What is left of each series after its least-squares mean (degree 0) or straight line (degree 1)."""
    if degree == 0:
        return values - values.mean(0)
    basis = np.stack([np.ones_like(steps), steps - steps.mean()], axis=1)
    return values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]


def shuffled_blocks(n: int, block: int, shuffles: int, rng: np.random.Generator) -> Int[np.ndarray, "{n} {shuffles}"]:
    """Orders of 0..n-1, one a column, in which runs of `block` neighbors stay together."""
    of = np.arange(n) // block
    ranks = rng.permuted(np.tile(np.arange(of[-1] + 1), (shuffles, 1)), axis=1)
    return np.argsort(ranks[:, of], axis=1, kind="stable").T


def _memory(steps: Float[np.ndarray, " step"], values: Float[np.ndarray, " step"]) -> int:
    """The block length of `onsets`."""
    half = len(values) // 2
    rest = without_trend(steps[:half], values[:half, None], 1)[:, 0]
    correlation = np.correlate(rest, rest, "full")[half - 1 :]
    faded = correlation <= 1.96 / np.sqrt(half) * correlation[0]
    faded[0] = False
    lag = int(faded.argmax()) if faded.any() else half
    return max(1, min(3 * (lag - 1) + 1, len(values) // BLOCKS))


@dataclass(frozen=True, eq=False)
class OnsetOrder:
    """Which metric moves first.

    Attributes:
        lead: a row per metric, the earliest first: median `lead` in steps before the drop with bootstrap
            interval `low`, `high`, the number of `runs` with an onset, and of those the number `at_start`, whose
            lead is a lower bound.
        difference: a row per ordered pair (`first`, `second`): median of lead of first - lead of second in steps
            (positive: first moves earlier), `low`, `high`, and the number of `runs` that have both.
        before: share of those runs in which the row's metric moves strictly before the column's.
        leads: the lead of each run (row) and metric (column), NaN where there is no onset.
        at_start: which of them are lower bounds.
        rule: name of the rule.
        confidence: of the intervals.
        no_drop: number of runs that were left out because they never dropped.
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
    found: Onsets, *, alpha: float = 0.05, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> OnsetOrder:
    """The order in which metrics leave their plateau, with percentile bootstrap intervals over runs.

    Runs are resampled with replacement, all metrics of a run together (Efron and Tibshirani 1993, chapter 13);
    medians, so that one late run does not decide. With fewer than about eight runs percentile intervals are too narrow.

    Args:
        found: from `onsets`.
        alpha: onsets with a larger p-value are left out, since where nothing bends the best bend is anywhere;
            1 keeps them.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: for a confidence outside 0..1 or fewer than 1 resample.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence must lie between 0 and 1 and resamples be positive, got {confidence}, {resamples}"
        )
    table = found.table
    names = list(table.index.unique("metric"))
    leads = table.lead.where(table.p <= alpha).unstack()[names]
    early = table.at_start.where(table.p <= alpha, False).astype(bool).unstack()[names]

    def summarised(values: "pd.Series[float]") -> dict[str, float]:
        known = values.dropna().to_numpy()
        if not len(known):
            return {"lead": np.nan, "low": np.nan, "high": np.nan, "runs": 0}
        drawn = np.random.default_rng(seed).integers(len(known), size=(resamples, len(known)))
        low, high = np.quantile(np.median(known[drawn], axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
        return {"lead": float(np.median(known)), "low": low, "high": high, "runs": len(known)}

    lead = pd.DataFrame({name: {**summarised(leads[name]), "at_start": early[name].sum()} for name in names}).T
    lead = lead.sort_values("lead", ascending=False, kind="stable").rename_axis("metric")
    pairs = list(permutations(lead.index, 2))
    gaps = {(a, b): leads[a] - leads[b] for a, b in pairs}
    rows = [summarised(gaps[pair]) for pair in pairs]
    index = pd.MultiIndex.from_arrays([[pair[i] for pair in pairs] for i in (0, 1)], names=["first", "second"])
    difference = pd.DataFrame(rows, index, ["lead", "low", "high", "runs"])
    before = pd.DataFrame(np.nan, lead.index, lead.index)
    for (a, b), gap in gaps.items():
        before.loc[a, b] = (gap.dropna() > 0).mean()
    difference = difference.rename(columns={"lead": "difference"})
    return OnsetOrder(lead, difference, before, leads, early, found.rule, confidence, len(found.no_drop))
