"""What a model says of each cell of a matrix, step by step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from einops import rearrange
from torch import Tensor

from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.batch import Batch
from plateaulens.papers.matrix_completion.head_atlas import matrices_of
from plateaulens.tracing.traces import trace


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
    size = {"row": (batch := matrices_of(batch)).task.rows, "col": batch.task.cols}

    def uninterruptible(cells: Tensor) -> tuple[tuple[str, str, str], np.ndarray]:
        return ("matrix", "row", "col"), rearrange(cells.cpu(), "b (row col) -> b row col", **size).numpy()

    def look(model: Any) -> xr.Dataset:
        return xr.Dataset({"predicted": uninterruptible(trace(model, batch, ["outputs"]).outputs.float())})

    return map_checkpoints(run, look, steps).assign(
        true=uninterruptible(batch.values), observed=uninterruptible(batch.observed)
    )
