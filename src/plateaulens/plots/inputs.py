"""What figures draw, as Protocols: the figures of recorded metrics import neither torch nor a model.

Any object with the attributes is accepted.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float


@runtime_checkable
class HasMetrics(Protocol):
    """A `Run`, or another object with its metrics by step."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One row for each measured step, one column for each metric."""
        ...


Metrics = HasMetrics | pd.DataFrame


@runtime_checkable
class HasParts(Protocol):
    """A `Task`, or another object with named parts of the answer."""

    @property
    def parts(self) -> Mapping[str, Sequence[int]]:
        """Answer positions of each part, by its name."""
        ...


@runtime_checkable
class PlateauSteps(Protocol):
    """A `Plateau`: steps and loss levels that are marked in a figure."""

    @property
    def start(self) -> int | None:
        """First step on the plateau."""
        ...

    @property
    def end(self) -> int | None:
        """First step after the plateau."""
        ...

    @property
    def drop(self) -> int | None:
        """Step of the drop."""
        ...

    @property
    def level(self) -> float:
        """Loss of the plateau, in nats."""
        ...

    @property
    def floor(self) -> float:
        """Loss of the solved task, in nats."""
        ...


@runtime_checkable
class PatternsByStep(Protocol):
    """`CheckpointTraces`, or another object with the attention patterns of each checkpoint."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps of the checkpoints."""
        ...

    @property
    def pattern(self) -> Float[np.ndarray, "step layer head query key"]:
        """Attention patterns, averaged over prompts."""
        ...


@runtime_checkable
class CosinesByStep(Protocol):
    """`CheckpointTraces`, or another object with the similarities of hidden states at each checkpoint."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps of the checkpoints."""
        ...

    @property
    def cosine(self) -> Float[np.ndarray, "step out out"]:
        """Cosine similarities of the hidden states of each pair of answer positions, averaged over prompts."""
        ...


@runtime_checkable
class OrderedOnsets(Protocol):
    """An `OnsetOrder`: how long before the drop each metric moves."""

    @property
    def lead(self) -> pd.DataFrame:
        """Median lead in steps with its interval, and the number of runs, by metric."""
        ...

    @property
    def leads(self) -> pd.DataFrame:
        """Lead in steps of each run (row) and metric (column)."""
        ...

    @property
    def at_start(self) -> pd.DataFrame:
        """Which of the leads are lower bounds."""
        ...

    @property
    def rule(self) -> str:
        """Name of the rule of the onset."""
        ...

    @property
    def confidence(self) -> float:
        """Confidence of the intervals."""
        ...


def metrics_frame(run: Metrics) -> pd.DataFrame:
    """The metrics of a run, or the given DataFrame itself."""
    return run if isinstance(run, pd.DataFrame) else run.metrics


def require_numbers(metrics: pd.DataFrame, column: str) -> None:
    """Check that a metric can be drawn as a curve.

    Raises:
        ValueError: when `column` was not recorded, or has a list at each step instead of a number.
    """
    if column not in metrics:
        raise ValueError(f"{column} was not recorded; add it to the metrics list, or choose from {list(metrics)}")
    if metrics[column].map(np.ndim).gt(0).any():
        raise ValueError(
            f"{column} has a list at each step, not a number; draw it with position_accuracy or part_accuracy"
        )
