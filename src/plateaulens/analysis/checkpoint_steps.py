"""Any question over the checkpoints of a run: `map_checkpoints`; and `evenly`, some of its steps.

map_checkpoints(run, lambda model: head_atlas(model, batch), evenly(run.steps, 6))
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr


def map_checkpoints(run: Any, look: Callable[[Any], xr.Dataset], steps: Sequence[int] | None = None) -> xr.Dataset:
    """`look(model)` at each checkpoint of `run`, or at those of `steps`, along a new axis `step`.

        map_checkpoints(run, lambda model: head_atlas(model, batch), [2000, 10_000])

    Raises:
        ValueError: when there is no checkpoint.
    """
    steps = chosen_steps(run, steps)
    return xr.concat([look(run.model(step)) for step in steps], pd.Index(steps, name="step"))


def chosen_steps(run: Any, steps: Sequence[int] | None = None) -> list[int]:
    """The given steps, or all of `run`.

    Raises:
        ValueError: when there is none.
    """
    chosen = list(run.steps if steps is None else steps)
    if not chosen:
        none = "steps= is empty" if steps is not None else f"{run!r} has no checkpoints; record with save_every="
        raise ValueError(none)
    return chosen


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly chosen by rank, the first and the last among them."""
    return [steps[i] for i in np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)]
