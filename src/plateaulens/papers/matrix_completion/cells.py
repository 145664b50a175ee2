"""Cells of matrices with masked cells: which are masked, observed or connected, and losses over them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.metrics.measuring import measure
from plateaulens.protocols import HookedModel
from plateaulens.tasks.matrices.completion import MatrixBatch, MatrixCompletion

CellKind = Literal["masked", "observed", "all"]
LOSSES = ("loss", "observed_loss", "masked_loss")  # mean squared error over all, observed and masked cells


def as_matrix_batch(batch: Batch) -> MatrixBatch:
    """The same batch, if it is one of `MatrixCompletion`.

    Raises:
        ValueError: For a batch of another task.
    """
    if not isinstance(batch, MatrixBatch) or not isinstance(batch.task, MatrixCompletion):
        raise ValueError(f"this needs matrices with masked cells, a batch of MatrixCompletion; got {batch!r}")
    return batch


def select_cells(batch: MatrixBatch, kind: str) -> Bool[Tensor, "batch pos"]:
    """Which cells are of a kind: "masked", "observed" or "all".

    Raises:
        ValueError: For an unknown kind, or if the batch has no such cell, whose mean would be NaN.
    """
    observed = batch.observed
    kinds = {"masked": ~observed, "observed": observed, "all": torch.ones_like(observed)}
    cells = look_up("kind of cells", kind, kinds)
    if not cells.any():
        raise ValueError(f"none of these {len(batch)} matrices has {kind} cells; choose another p_mask or other cells")
    return cells


def disconnected(observed: Bool[Tensor, "*batch row col"]) -> Bool[Tensor, "*batch row col"]:
    r"""The masked cells that nothing determines: no path of observed cells leads from their row to their column.

    With rows and columns as the nodes of a bipartite graph and observed cells as its edges, these are the cells between
    two components. Scaling the rows of one by c and its columns by 1/c changes no observed cell and no rank, but those
    (Kiraly, Theran and Tomioka, arXiv 1211.4116; at rank 1 all other cells are determined).
    """
    paths = observed.float()  # whether a path of at most 1, 3, 9, ... cells leads from row to column
    for _ in range(min(observed.shape[-2:]).bit_length()):  # the shortest has at most 2 min(row, col) - 1 cells
        paths = (paths @ paths.mT @ paths).clamp(max=1.0)
    return paths == 0


def scalar_metrics(model: HookedModel, batch: Batch, metrics: Sequence[str]) -> list[float]:
    """The values of metrics that are one number for the batch, in the order of `metrics`.

    Raises:
        ValueError: For a metric of several values, or a loss over masked or observed cells if the batch has none.
    """
    if isinstance(batch, MatrixBatch):
        for kind in ("masked", "observed"):
            if f"{kind}_loss" in metrics:
                select_cells(batch, kind)
    values = measure(model, batch, metrics)
    if list(values) != list(metrics) or any(value.ndim for value in values.values()):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
        raise ValueError(f"this needs full names of metrics of one value, each once; got {shapes}")
    return [float(value) for value in values.values()]


def dataset_of(values: list[Any], axes: dict[str, list[str]], names: Sequence[str]) -> xr.Dataset:
    """A dataset over `axes` with one variable for each entry along the last axis of the nested lists."""
    grid = xr.DataArray(values, coords=axes | {"metric": list(names)}, dims=[*axes, "metric"])
    return grid.to_dataset("metric")
