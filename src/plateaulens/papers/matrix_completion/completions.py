"""Predicted matrices at each step of a run."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from einops import rearrange
from torch import Tensor

from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.batch import Batch
from plateaulens.papers.matrix_completion.cells import as_matrix_batch
from plateaulens.protocols import CheckpointSeries, HookedModel
from plateaulens.tracing.traces import trace


def completions(run: CheckpointSeries, batch: Batch, steps: Sequence[int] | None = None) -> xr.Dataset:
    """Entries predicted by the model of each step, with the true ones and which are observed.

    Args:
        run: A run of matrix completion.
        batch: Matrices of one size.
        steps: Steps of checkpoints; all by default.

    Returns:
        `predicted` (step matrix row col), `true` and `observed` (matrix row col).

    Raises:
        ValueError: For a batch of another task, or a run without checkpoints.
    """
    matrices = as_matrix_batch(batch)
    size = {"row": matrices.task.rows, "col": matrices.task.cols}

    def as_matrices(cells: Tensor) -> tuple[tuple[str, str, str], np.ndarray]:
        return ("matrix", "row", "col"), rearrange(cells.cpu(), "b (row col) -> b row col", **size).numpy()

    def predictions(model: HookedModel) -> xr.Dataset:
        return xr.Dataset({"predicted": as_matrices(trace(model, matrices, ["outputs"]).outputs.float())})

    grids = map_checkpoints(run, predictions, steps)
    return grids.assign(true=as_matrices(matrices.values), observed=as_matrices(matrices.observed))
