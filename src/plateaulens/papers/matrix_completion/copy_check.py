"""Whether a model copies a token that is put into masked cells (arXiv 2410.22244, table 1).

copy_check(run, batch, steps=[1000, 2000, 10_000])
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import sqrt

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.batch import Batch
from plateaulens.metrics.measuring import measure
from plateaulens.papers.matrix_completion.cells import as_matrix_batch, dataset_of, select_cells
from plateaulens.protocols import CheckpointSeries, HookedModel, requires
from plateaulens.tasks.matrices.completion import MatrixBatch
from plateaulens.tasks.matrices.metrics import mean_over_cells
from plateaulens.tracing.traces import Trace

PAPER_FILLERS = (0.44, -0.24)  # at the variance 2/9 of the paper's entries
PAPER_VARIANCE = 2 / 9


def copy_check(
    run: CheckpointSeries,
    batch: Batch,
    values: Sequence[float | None] | None = None,
    steps: Sequence[int] | None = None,
) -> xr.Dataset:
    """Losses with MASK, or the token of a value, in the masked cells of the prompts.

    Matrices of full rank test whether only low-rank matrices are copied: `replace(task, rank=None).sample(...)`.

    Args:
        run: A run of matrix completion.
        batch: A batch of `MatrixCompletion`; 512 matrices in the paper.
        values: Values to put in, None for MASK. By default MASK and the paper's 0.44 and -0.24, scaled by the ratio of
            this task's standard deviation to the paper's, clipped to the limit and rounded to a token. Two values of
            the same token are used once.
        steps: Steps of checkpoints; all by default.

    Returns:
        Over (step, value): `observed_loss`, and `copied_loss`, the mean of (prediction - v)^2 over the masked cells,
        with v = 0 for MASK. Both are small where the model copies.

    Raises:
        ValueError: For a batch of another task, one without masked or without observed cells, or a value beyond the
            largest token's.
    """
    task = (batch := as_matrix_batch(batch)).task
    if values is None:
        scaled = (value * sqrt(task.variance / PAPER_VARIANCE) for value in PAPER_FILLERS)
        values = [None, *(max(-task.limit, min(task.limit, value)) for value in scaled)]
    if beyond := [value for value in values if value is not None and abs(value) > task.limit]:
        raise ValueError(f"tokens reach from {-task.limit} to {task.limit}, got {beyond[0]}; choose other values=")
    for kind in ("masked", "observed"):
        select_cells(batch, kind)
    filled: dict[str, tuple[MatrixBatch, float]] = {}
    for value in values:
        if value is None:
            filled["MASK"] = (batch, 0.0)
        else:
            token = task.token(torch.tensor(value))
            rounded = float(task.value(token))
            filled[f"{rounded:g}"] = (replace(batch, filler=int(token)), rounded)

    def losses(model: HookedModel) -> xr.Dataset:
        measured = [measure(model, b, ["observed_loss", _copied_loss(v)]).values() for b, v in filled.values()]
        rows = [[float(loss) for loss in row] for row in measured]
        return dataset_of(rows, {"value": list(filled)}, ("observed_loss", "copied_loss"))

    return map_checkpoints(run, losses, steps)


def _copied_loss(value: float) -> Callable[[Trace], Tensor]:
    @requires("outputs")
    def copied_loss(t: Trace) -> Float[Tensor, " batch"]:
        return mean_over_cells((t.outputs - value).square(), ~as_matrix_batch(t.batch).observed)

    return copied_loss
