"""What a model says of each cell of a matrix, step by step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from einops import rearrange

from plateaulens._shapes import Batch
from plateaulens.analysis.heads import matrices_of
from plateaulens.tracing import trace


def completions(run: Any, batch: Batch, steps: Sequence[int] | None = None) -> xr.Dataset:
    """The entries that the model of each step gives, beside the true ones and what was shown.

    Args:
        run: a Run of matrix completion.
        batch: matrices of one size.
        steps: checkpoints, all of the run by default.

    Returns:
        `predicted` (step matrix row col), `true` and `observed` (matrix row col).

    Raises:
        ValueError: for other batches, or when the run has no checkpoint.
    """
    batch, steps = matrices_of(batch), list(run.steps if steps is None else steps)
    if not steps:
        raise ValueError(f"{run!r} has no checkpoints; record with save_every=")
    shape = {"row": batch.task.rows, "col": batch.task.cols}
    said = [trace(run.model(step), batch, ["outputs"]).outputs.cpu() for step in steps]
    predicted = np.stack([rearrange(x, "b (row col) -> b row col", **shape).numpy() for x in said])
    true, seen = (rearrange(x.cpu(), "b (row col) -> b row col", **shape) for x in (batch.values, batch.observed))
    cells = ("matrix", "row", "col")
    return xr.Dataset(
        {"predicted": (("step", *cells), predicted), "true": (cells, true.numpy()), "observed": (cells, seen.numpy())},
        coords={"step": steps},
    )
