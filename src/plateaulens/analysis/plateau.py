"""Where the plateau is: from the loss curve, by a stated rule."""

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Plateau:
    """A plateau of the loss curve, in steps; None where the recording ended before it, or began after it.

    Attributes:
        start: first measured step at which a quarter or less of the initial excess over `level` is left.
        end: first of three measurements in a row below `level` by 2 % of the way to `floor`.
        drop: first measured step with the loss below the middle of `level` and `floor`.
        level: loss of the plateau, in nats.
        floor: loss of the solved task, in nats.
    """

    start: int | None
    end: int | None
    drop: int | None
    level: float
    floor: float

    @property
    def width(self) -> int | None:
        """Steps from start to end."""
        return None if self.start is None or self.end is None else self.end - self.start


def find_plateau(run: Any, level: float | None = None, floor: float | None = None) -> Plateau:
    """The plateau of a Run or of a frame with a `loss` column, by the rule of `Plateau`.

    Level and floor default to the analytic ones of the run's task. For moving-window sum (n=16, k=2,
    p=17) the plateau ends below 2.60, the criterion of the reference numbers.

    Raises:
        ValueError: without a loss curve, or without a level and a floor.
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
    first = loss.dropna().iloc[0]
    left, middle = level - 0.02 * (level - floor), (level + floor) / 2
    return Plateau(
        start=None if first < left else first_crossing(loss, level + (first - level) / 4, above=False),
        end=None if first < left else first_crossing(loss, left, above=False, running=3),
        drop=None if first < middle else first_crossing(loss, middle, above=False),
        level=level,
        floor=floor,
    )


def first_crossing(series: "pd.Series[float]", threshold: float, above: bool = True, running: int = 1) -> int | None:
    """First step from which `running` measurements in a row lie beyond `threshold`, or None.

    Args:
        series: values by step; NaN are left out.
        threshold: the level to cross, in the units of the series.
        above: whether to wait for values above it or below it.
        running: how many measurements in a row must lie beyond; 1 takes the first.
    """
    values = series.dropna().sort_index()
    beyond = values > threshold if above else values < threshold
    hits = beyond.astype(int).rolling(running).sum().shift(1 - running) == running
    return next((int(step) for step in values.index[hits.to_numpy()]), None)
