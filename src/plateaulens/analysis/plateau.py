"""The plateau of a loss curve: its start, its end, and the drop after it.

    plateau = find_plateau(run)
    plateau.steps_among(run.steps, run.metrics.loss)  # the checkpoints on the plateau

`PlateauRule` states the one definition, which reports, probes and the documentation use too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import pandas as pd


@runtime_checkable
class HasMetrics(Protocol):
    """A `Run`, or an object of your own with its metrics by step; a `task` attribute supplies analytic levels."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a measured step, one column a metric."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlateauRule:
    """Definition of a plateau of the loss at a known level, before it falls towards a known floor.

    Attributes:
        start_excess: the plateau starts at the first measured step at which less than this share of the initial
            excess of the loss over the level is left.
        departure: it ends where the loss is below the level by this share of the way from the level to the floor.
        drop: the drop is the first measured step at which the loss is below the level by this share of that way.
        consecutive: number of measurements in a row that have to agree, for the end (which is the first of them) and
            for a stretch on the plateau.
        tolerance: at a step on the plateau the loss differs from the level by at most this share of the level.
    """

    start_excess: float = 0.25
    departure: float = 0.02
    drop: float = 0.5
    consecutive: int = 3
    tolerance: float = 0.05


DEFAULT_RULE = PlateauRule()


@dataclass(frozen=True)
class Plateau:
    """A plateau of the loss curve, in steps; see `PlateauRule` for the definitions.

    Attributes:
        start: first step on the plateau; None if the loss never reaches it, or was below it from the first measurement.
        end: first step after the loss has left it; None if it does not, or was below it from the first measurement.
        drop: step of the drop; None if there is none, or if it was before the first measurement.
        level: loss of the plateau, in nats.
        floor: loss of the solved task, in nats.
        rule: the definition by which it was found.
    """

    start: int | None
    end: int | None
    drop: int | None
    level: float
    floor: float
    rule: PlateauRule = field(default=DEFAULT_RULE, repr=False)

    @property
    def width(self) -> int | None:
        """Steps from start to end."""
        return None if self.start is None or self.end is None else self.end - self.start

    def stretches(self, loss: "pd.Series[float]") -> list[tuple[int, int]]:
        """First and last step of each stretch with the loss at the plateau's level, by the rule's tolerance.

        A curve that only passes through the level has none: a stretch has `rule.consecutive` measurements or more. All
        are from the start on, and before both the end and the drop.

        Args:
            loss: the loss by step; NaN are left out.
        """
        if self.start is None:
            return []
        before = min(step for step in (self.end, self.drop, float("inf")) if step is not None)
        values = loss.dropna().sort_index()
        values = values[(values.index >= self.start) & (values.index < before)]
        at_level = (values / self.level - 1).abs() <= self.rule.tolerance
        stretch_number = (~at_level).cumsum()[at_level]  # equal within a stretch
        stretches = (steps.index for _, steps in stretch_number.groupby(stretch_number))
        return [(int(steps[0]), int(steps[-1])) for steps in stretches if len(steps) >= self.rule.consecutive]

    def steps_among(self, steps: Iterable[int], loss: "pd.Series[float]") -> list[int]:
        """Those of `steps` that are within one of the `stretches` of `loss`."""
        stretches = self.stretches(loss)
        return [step for step in steps if any(first <= step <= last for first, last in stretches)]


def find_plateau(
    run: HasMetrics | pd.DataFrame,
    level: float | None = None,
    floor: float | None = None,
    *,
    rule: PlateauRule = DEFAULT_RULE,
) -> Plateau:
    """Return the plateau of the loss curve of a run, or of a DataFrame with a `loss` column.

    For moving-window sum (n=16, k=2, p=17) the plateau ends below 2.60, as in the reference code of arXiv 2506.13688.

    Args:
        run: a Run, or its metrics by step.
        level: loss of the plateau in nats; by default the analytic one of the run's task.
        floor: loss of the solved task in nats; by default the analytic one of the run's task.
        rule: definition of start, end and drop.

    Raises:
        ValueError: if no loss was recorded, or if the level or the floor is not known.
    """
    metrics = run if isinstance(run, pd.DataFrame) else run.metrics
    task = getattr(run, "task", None)
    if task is not None:
        level = task.loss_plateau() if level is None else level
        floor = task.loss_floor() if floor is None else floor
    if level is None or floor is None:
        raise ValueError("the plateau's loss level and floor are not known for this task; pass level= and floor=")
    if "loss" not in metrics or metrics.loss.dropna().empty:
        raise ValueError("no loss was recorded; record with pl.metrics.loss in the metrics list")
    loss = metrics.loss
    initial = loss.dropna().iloc[0]
    start = level + rule.start_excess * (initial - level)
    end, drop = (level - share * (level - floor) for share in (rule.departure, rule.drop))
    began_below = initial < end  # the recording began after the plateau
    return Plateau(
        start=None if began_below else first_crossing(loss, start, above=False),
        end=None if began_below else first_crossing(loss, end, above=False, consecutive=rule.consecutive),
        drop=None if initial < drop else first_crossing(loss, drop, above=False),
        level=level,
        floor=floor,
        rule=rule,
    )


def first_crossing(
    series: "pd.Series[float]", threshold: float, *, above: bool = True, consecutive: int = 1
) -> int | None:
    """First step from which `consecutive` values in a row are beyond `threshold`; None if there is none.

    Args:
        series: values by step; NaN are left out.
        threshold: the value to cross, in the units of the series.
        above: whether values beyond the threshold are above it (or else below it).
        consecutive: number of values in a row that have to be beyond it.
    """
    values = series.dropna().sort_index()
    beyond = values > threshold if above else values < threshold
    hits = beyond.astype(int).rolling(consecutive).sum().shift(1 - consecutive) == consecutive
    return next((int(step) for step in values.index[hits.to_numpy()]), None)
