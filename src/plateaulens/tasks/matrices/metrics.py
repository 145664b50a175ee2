"""Metrics of matrices with masked cells: squared errors of the value predicted for each cell (arXiv 2410.22244)."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens.protocols import Metric, requires


@requires("outputs")
def loss(t: Any) -> Float[Tensor, " batch"]:
    """Mean squared error over all cells."""
    return _squared_errors(t).mean(-1)


@requires("outputs")
def observed_loss(t: Any) -> Float[Tensor, " batch"]:
    """Mean squared error over the observed cells (L_obs)."""
    return mean_over_cells(_squared_errors(t), t.batch.observed)


@requires("outputs")
def masked_loss(t: Any) -> Float[Tensor, " batch"]:
    """Mean squared error over the masked cells (L_mask)."""
    return mean_over_cells(_squared_errors(t), ~t.batch.observed)


@requires("outputs")
def masked_size(t: Any) -> Float[Tensor, " batch"]:
    """Mean magnitude of the values predicted for masked cells: about 0 until the model completes matrices."""
    return mean_over_cells(t.outputs.abs(), ~t.batch.observed)


METRICS: dict[str, Metric] = {f.__name__: f for f in (loss, observed_loss, masked_loss, masked_size)}


def mean_over_cells(values: Float[Tensor, "batch cell"], cells: Bool[Tensor, "batch cell"]) -> Float[Tensor, " batch"]:
    """Each row's share in the mean of `values` over the chosen cells of all rows.

    The mean over the batch of what is returned is the mean over all chosen cells: rows with more cells weigh more, as
    in arXiv 2410.22244.
    """
    return values.where(cells, 0.0).sum(-1) * (len(cells) / cells.sum())


def _squared_errors(t: Any) -> Float[Tensor, "batch pos"]:
    return (t.outputs - t.batch.values).square()
