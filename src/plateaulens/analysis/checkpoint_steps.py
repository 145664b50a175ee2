"""`map_checkpoints` evaluates a function of a model at many checkpoints; `evenly_spaced` chooses some of the steps.

map_checkpoints(run, lambda model: head_atlas(model, batch), evenly_spaced(run.steps, 6))
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from plateaulens.protocols import CheckpointSeries, HookedModel


def map_checkpoints(
    run: CheckpointSeries, function: Callable[[HookedModel], xr.Dataset], steps: Sequence[int] | None = None
) -> xr.Dataset:
    """Evaluate `function` on the model of each checkpoint and join the results along a new axis `step`.

        map_checkpoints(run, lambda model: head_atlas(model, batch), [2000, 10_000])

    Args:
        run: A Run or a suite of checkpoints.
        function: A function from a model to a Dataset; all Datasets have the same shape.
        steps: Steps of the checkpoints; by default all.

    Returns:
        The Datasets with an axis `step` in front.

    Raises:
        ValueError: If there is no checkpoint.
    """
    steps = chosen_steps(run, steps)
    return xr.concat([function(run.model(step)) for step in steps], pd.Index(steps, name="step"))


def chosen_steps(run: CheckpointSeries, steps: Sequence[int] | None = None) -> list[int]:
    """Return the given steps, or all of `run`.

    Raises:
        ValueError: If there is none.
    """
    chosen = list(run.steps if steps is None else steps)
    if not chosen:
        raise ValueError(f"{run!r} has no checkpoints; record with save_every=" if steps is None else "steps= is empty")
    return chosen


def evenly_spaced(steps: Sequence[int], max_steps: int) -> list[int]:
    """Choose at most `max_steps` of the steps, evenly spaced by rank, with the first and the last among them."""
    ranks = np.linspace(0, len(steps) - 1, min(max_steps, len(steps))).round().astype(int)
    return [steps[rank] for rank in ranks]
