"""Effect of a change of the training: paired differences between changed runs and controls of the same seeds.

paired_difference(control_runs, changed_runs)                      # steps of the drop
paired_difference(control_runs, changed_runs, "peak collapse")
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from plateaulens._registry import unknown
from plateaulens.analysis.plateau import find_plateau

PLATEAU_STEPS = ("start", "end", "drop")  # attributes of `Plateau`; a run may stop before it reaches them


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """The differences changed - control of one value, pair by pair, with their median, its interval and a test.

    Attributes:
        value: Name of the value that was compared.
        control: Value of the control of each usable pair, inf if it was not reached.
        changed: Value of the changed run of each usable pair, inf if it was not reached.
        differences: changed - control; inf if only the changed run is censored, -inf if only the control is.
        median: Median of the differences; NaN if it is between -inf and inf.
        interval: Distribution-free confidence interval of the median.
        confidence: Exact coverage of the interval; at least the requested one if there are enough pairs.
        p: p-value of the two-sided exact sign test that gains and losses are equally likely; differences of 0 do not
            count.
        censored: Number of pairs in which one of the two did not reach the value.
        left_out: Number of pairs in which neither did.
    """

    value: str
    control: Float[np.ndarray, " pair"]
    changed: Float[np.ndarray, " pair"]
    differences: Float[np.ndarray, " pair"]
    median: float
    interval: tuple[float, float]
    confidence: float
    p: float
    censored: int
    left_out: int

    @property
    def n(self) -> int:
        """Number of usable pairs."""
        return len(self.differences)

    def __str__(self) -> str:
        plain = "{:.0f}" if self.value in PLATEAU_STEPS else "{:.3g}"
        unit = " steps" if self.value in PLATEAU_STEPS else ""
        median, low, high = (plain.format(x) for x in (self.median, *self.interval))
        counts = [f"{self.n} pairs", f"{100 * self.confidence:.1f} %"]
        counts += [f"{self.censored} censored"] if self.censored else []
        counts += [f"{self.left_out} left out"] if self.left_out else []
        return f"{self.value}: median {median}{unit} [{low}, {high}] ({', '.join(counts)}), p = {self.p:.1g}"


def paired_difference(
    control: Sequence[Any] | Float[np.ndarray, " pair"],
    changed: Sequence[Any] | Float[np.ndarray, " pair"],
    value: str | Callable[[Any], float | None] = "drop",
    *,
    confidence: float = 0.95,
) -> PairedDifference:
    """Median over seeds of changed - control, with a confidence interval and a p-value that assume no distribution.

    The interval is from the k-th smallest to the k-th largest difference, with the largest k for which
    1 - 2 P(Binomial(n, 1/2) < k) is at least `confidence` (Conover 1999, section 3.2). It only assumes independent
    pairs, and holds with ties. Fewer than six pairs cannot give 95 %: then it spans all differences, and `confidence`
    of the result is what that covers.

    A run that stopped before the event is censored: its step is somewhere beyond its last one. The median counts it as
    inf; the lower end of the interval takes the smallest possible difference, the upper end the largest, so that the
    interval holds in any case. Pairs in which both are censored are left out.

    Args:
        control: Runs, or numbers (None or inf where censored). DataFrames of metrics too, unless `value` is a step of
            `find_plateau`.
        changed: As many, paired by seed; numbers are paired by position in the list.
        value: "drop", "start" or "end" (steps of `find_plateau`); "peak METRIC", "least METRIC" or "final METRIC" of a
            recorded metric; or a function of a Run that returns a number, or None for inf.
        confidence: Requested coverage of the interval.

    Raises:
        ValueError: For lists of different length, different or repeated seeds, an unknown value or one that is NaN,
            fewer than 2 usable pairs, or a run that stopped before its partner's event.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    pairs = paired_by_seed(control, changed)
    name = value if isinstance(value, str) else getattr(value, "__name__", "value")
    both = np.array([[_number(run, value, i) for run in pair] for i, pair in enumerate(pairs)]).reshape(-1, 2)
    least = (
        both
        if name not in PLATEAU_STEPS
        else np.array([_smallest_possible(pair, both[i], i, name) for i, pair in enumerate(pairs)])
    )
    usable = np.isfinite(both).any(1)
    if usable.sum() < 2:
        raise ValueError(
            f"{name} needs at least 2 pairs in which one run reached it, got {usable.sum()} of {len(pairs)}"
        )
    (a, b), (least_a, least_b) = both[usable].T, least[usable].T
    differences = b - a
    k, covered = _rank(len(differences), confidence)
    ordered = np.sort(differences)
    middle = ordered[[(len(ordered) - 1) // 2, len(ordered) // 2]]
    median = math.nan if np.isinf(middle).all() and middle[0] != middle[1] else float(middle.mean())
    signs = np.sign(differences[differences != 0])
    p = float(stats.binomtest(int((signs > 0).sum()), len(signs)).pvalue) if len(signs) else 1.0
    return PairedDifference(
        value=name,
        control=a,
        changed=b,
        differences=differences,
        median=median,
        interval=(float(np.sort(least_b - a)[k - 1]), float(np.sort(b - least_a)[-k])),
        confidence=covered,
        p=p,
        censored=int(np.isinf(differences).sum()),
        left_out=int((~usable).sum()),
    )


def paired_by_seed(
    control: Sequence[Any] | Float[np.ndarray, " pair"], changed: Sequence[Any] | Float[np.ndarray, " pair"]
) -> list[tuple[Any, Any]]:
    """Pair runs with the same seeds of weights and data; numbers and DataFrames are paired by position in the list.

    Returns:
        Pairs (control, changed) in the order of `control`.

    Raises:
        ValueError: For lists of different length, different or repeated seeds.
    """
    if len(control) != len(changed):
        raise ValueError(f"each control needs its changed run, got {len(control)} and {len(changed)}")
    seeds = [[_seed(run) for run in arm] for arm in (control, changed)]
    if all(seed is None for arm in seeds for seed in arm):
        return list(zip(control, changed, strict=True))
    if set(seeds[0]) != set(seeds[1]):
        raise ValueError(f"the arms have different (model, data) seeds, {seeds[0]} and {seeds[1]}; pair equal ones")
    if len(set(seeds[0])) < len(control):
        raise ValueError(f"(model, data) seeds are repeated, so that pairs are ambiguous: {seeds[0]}")
    partner = dict(zip(seeds[1], changed, strict=True))
    return [(run, partner[seed]) for run, seed in zip(control, seeds[0], strict=True)]


def _seed(run: Any) -> tuple[int | None, int] | None:
    config = getattr(run, "config", None)
    return (config["model"].get("seed"), config["train"]["seed"]) if isinstance(config, dict) else None


def _rank(n: int, confidence: float) -> tuple[int, float]:
    """The order statistic k, at least 1, and the coverage of [k-th smallest, k-th largest]."""
    covered = 1 - 2 * stats.binom.cdf(np.arange(0, (n + 1) // 2), n, 0.5)  # of k = 1, 2, ...
    k = max(1, int((covered >= confidence).sum()))
    return k, float(covered[k - 1])


def _number(run: Any, value: str | Callable[[Any], float | None], i: int) -> float:
    """The value of a run; inf if it was not reached."""
    if run is None or isinstance(run, int | float | np.number):
        number = run
    elif not isinstance(value, str):
        number = value(run)
    elif value in PLATEAU_STEPS:
        number = getattr(find_plateau(run), value)
    else:
        number = _of_metric(run, value)
    if number is not None and math.isnan(number):
        raise ValueError(f"{value if isinstance(value, str) else 'the value'} of pair {i} is NaN")
    return math.inf if number is None else float(number)


def _of_metric(run: Any, value: str) -> float:
    metrics = run if isinstance(run, pd.DataFrame) else run.metrics
    which, _, metric = value.partition(" ")
    if which not in ("peak", "least", "final") or metric not in metrics:
        known = [*PLATEAU_STEPS, *(f"{w} {m}" for m in metrics for w in ("peak", "least", "final"))]
        raise unknown("value", value, known)
    series = metrics[metric].dropna()
    if series.map(np.ndim).gt(0).any():
        raise ValueError(f"{metric} has a list at each step, not a number; pass a function of the run")
    if series.empty:
        raise ValueError(f"{metric} was recorded, but has no value at any step")
    return float({"peak": series.max, "least": series.min, "final": lambda: series.iloc[-1]}[which]())


def _smallest_possible(
    pair: tuple[Any, Any], values: Float[np.ndarray, " arm"], i: int, name: str
) -> Float[np.ndarray, " arm"]:
    """The smallest possible steps of a pair: the last recorded step for a run that is censored.

    Raises:
        ValueError: If a run stopped before its partner's event, so that it is not known which came later.
    """
    frames = [getattr(run, "metrics", run) for run in pair]
    last = [float(frame.index.max()) if isinstance(frame, pd.DataFrame) else math.inf for frame in frames]
    least = np.minimum(values, last)
    for value, last_step, other in zip(values, least, values[::-1], strict=True):
        if math.isinf(value) and last_step < other < math.inf:
            raise ValueError(
                f"pair {i}: one run stopped at step {last_step:.0f}, before the other's {name} at {other:.0f}; "
                "record both for as long"
            )
    return least
