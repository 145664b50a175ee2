"""Attention outputs of a matrix X patched into the run on -X (arXiv 2410.22244)."""

import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.hooks import device_of, n_layers
from plateaulens.interventions import Patch, intervene
from plateaulens.papers.matrix_completion.cells import as_matrix_batch, select_cells
from plateaulens.protocols import HookedModel
from plateaulens.tracing.traces import trace


def patch_negated(model: HookedModel, batch: Batch, *, by_head: bool = False) -> xr.Dataset:
    """Distances of the predictions to X and -X when attention outputs z of the run on X are patched into that on -X.

    Both runs have the same mask. One layer is patched at a time, at all positions or only at those of masked or of
    observed cells, which differ from matrix to matrix. A patch without effect gives the distances `unpatched`; one that
    determines the output gives those of the run on X, `clean`. -X is 4 Var from X on average.

    Args:
        model: Any hooked model that predicts every cell.
        batch: A batch of `MatrixCompletion`, the X; 256 matrices in the paper.
        by_head: Whether to patch heads one by one.

    Returns:
        `distance` (layer positions to cells, with head after layer if `by_head`), the mean squared difference of the
        predictions to "X" or "-X" over the "masked" or "observed" cells; `unpatched` and `clean` (to cells). The
        attribute `four_variance` is 4 Var.

    Raises:
        ValueError: For a batch of another task, or one without masked or without observed cells.
    """
    clean = as_matrix_batch(batch.to(device_of(model)))
    corrupted, positions = clean.negated(), {kind: select_cells(clean, kind) for kind in ("all", "masked", "observed")}
    sites = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers(model))]
    clean_trace, corrupted_trace = (trace(model, b, ["outputs", *sites]) for b in (clean, corrupted))
    heads = [[head] for head in range(model.cfg.n_heads)] if by_head else [None]

    def distances(outputs: Float[Tensor, "batch pos"]) -> list[list[float]]:
        errors = [(outputs - x.values).square() for x in (clean, corrupted)]
        return [[float(error[positions[kind]].mean()) for kind in ("masked", "observed")] for error in errors]

    def patched(site: str, head: list[int] | None, cells: Bool[Tensor, "batch pos"]) -> list[list[float]]:
        # Nothing below the layer is changed, so that the cells that are not patched keep their values of the run on -X.
        value = clean_trace.cache[site].where(cells[..., None, None], corrupted_trace.cache[site])
        with intervene(model, Patch(site, value, heads=head)):
            return distances(trace(model, corrupted, ["outputs"]).outputs)

    values = [[[patched(site, head, cells) for cells in positions.values()] for head in heads] for site in sites]
    dims = ("layer", "head", "positions", "to", "cells")
    distance = xr.DataArray(values, dims=dims, coords={"head": range(len(heads))})
    return xr.Dataset(
        {
            "distance": distance if by_head else distance.isel(head=0, drop=True),
            "unpatched": (("to", "cells"), distances(corrupted_trace.outputs)),
            "clean": (("to", "cells"), distances(clean_trace.outputs)),
        },
        coords={
            "layer": range(len(sites)),
            "positions": list(positions),
            "to": ["X", "-X"],
            "cells": ["masked", "observed"],
        },
        attrs={"four_variance": 4 * clean.task.variance},
    )
