"""What completes a matrix (arXiv 2410.22244): heads taken out, activations and weights exchanged, tokens put in.

    head_ablations(model, batch, head_groups(head_atlas(model, batch)))
    patch_negated(model, batch)
    switch(run.model(2000), run.model(10_000), batch)
    copy_check(run, batch, steps=[1000, 2000, 10_000])

Losses are the paper's: squared error over all cells, over those that are shown, and over those that are hidden.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.batch import Batch
from plateaulens.hooks import device_of, n_layers
from plateaulens.interventions import AblateHeads, Patch, intervene
from plateaulens.metrics.measuring import measure
from plateaulens.models.parameter_groups import graft
from plateaulens.papers.matrix_completion.head_atlas import cells_of, matrices_of
from plateaulens.protocols import requires
from plateaulens.tasks.matrices.completion import MatrixBatch
from plateaulens.tasks.matrices.metrics import mean_over_cells
from plateaulens.tracing.traces import Trace, trace

LOSSES = ("loss", "observed_loss", "masked_loss")
MODES = ("mean", "uniform", "zero")
# What the paper's code exchanges. "att" has neither the output weights nor the norm after attention.
SWITCHED: dict[str, tuple[str, ...]] = {
    "att": ("qk", "*.attn.v.*"),
    "mlp": ("embed", "pos", "ln_embed", "mlp", "ln2", "unembed"),
}
FILLERS = (0.44, -0.24)  # the paper's, at the variance 2/9 of its entries
PAPER_VARIANCE = 2 / 9


def head_ablations(
    model: Any,
    batch: Batch,
    groups: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    modes: Sequence[str] = MODES,
    metrics: Sequence[str] = LOSSES,
) -> xr.Dataset:
    """What a model loses without a head, a layer of heads or a named group of heads, by each mode of `AblateHeads`.

    The paper's "uniform ablation" is "mean" in its code, which leaves a head that looks at positions only as it is;
    its result depends on the batch.

    Args:
        model: any hooked model.
        batch: to measure, and to take mean patterns over.
        groups: name -> (layer, head) pairs; those of `head_groups` for example.
        modes: any of "mean", "uniform", "zero".
        metrics: measurements of one value.

    Returns:
        Each measurement by (ablated, mode). `ablated` is "intact", then "L0H1" and so on, "layer 0" and so on, and
        the names of groups.

    Raises:
        ValueError: for an unknown mode or measurement, one of several values, a head that is not there, or a loss of
            masked or observed cells of matrices that have none.
    """
    layers, heads = range(n_layers(model)), range(model.cfg.n_heads)
    every: dict[str, Sequence[tuple[int, int]]] = {
        **{f"L{layer}H{head}": [(layer, head)] for layer in layers for head in heads},
        **{f"layer {layer}": [(layer, head) for head in heads] for layer in layers},
        **(groups or {}),
    }
    values = [[measured(model, batch, metrics)] * len(modes)]
    for chosen in every.values():
        values.append([])
        for mode in modes:
            with intervene(model, AblateHeads(chosen, mode)):
                values[-1].append(measured(model, batch, metrics))
    return _by_name(values, {"ablated": ["intact", *every], "mode": list(modes)}, metrics)


def patch_negated(model: Any, batch: Batch, by_head: bool = False) -> xr.Dataset:
    """Put the attention outputs z of a run on X into the run on -X behind the same mask, layer by layer.

    A patch without effect leaves the distances `unpatched`; one that carries everything gives those of `clean`, the
    run on X itself. A model that answers -X is 4 Var from X. One layer is patched at a time, everywhere or only at
    the positions of masked or of observed cells, which differ from matrix to matrix.

    Args:
        model: any hooked model that answers every cell.
        batch: of `MatrixCompletion`; the X. 256 matrices in the paper.
        by_head: patch heads one by one too.

    Returns:
        `distance` (layer positions to cells, and head after layer): mean squared difference of the outputs to "X" or
        "-X" over the "masked" or "observed" cells; `unpatched` and `clean` (to cells). Attribute `four_variance`.

    Raises:
        ValueError: for other batches, or matrices without masked or without observed cells.
    """
    clean = matrices_of(batch.to(device_of(model)))
    corrupted, positions = clean.negated(), {kind: cells_of(clean, kind) for kind in ("all", "masked", "observed")}
    sites = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers(model))]
    there, here = (trace(model, b, ["outputs", *sites]) for b in (clean, corrupted))
    heads = [[head] for head in range(model.cfg.n_heads)] if by_head else [None]

    def distances(outputs: Float[Tensor, "batch pos"]) -> list[list[float]]:
        errors = [(outputs - x.values).square() for x in (clean, corrupted)]
        return [[float(error[positions[kind]].mean()) for kind in ("masked", "observed")] for error in errors]

    def patched(site: str, head: list[int] | None, at: Tensor) -> list[list[float]]:
        # Nothing below the layer is changed, so that the rest keeps what the run on -X has there by itself.
        value = there.cache[site].where(at[..., None, None], here.cache[site])
        with intervene(model, Patch(site, value, heads=head)):
            return distances(trace(model, corrupted, ["outputs"]).outputs)

    values = [[[patched(site, head, at) for at in positions.values()] for head in heads] for site in sites]
    dims = ("layer", "head", "positions", "to", "cells")
    distance = xr.DataArray(values, dims=dims, coords={"head": range(len(heads))})
    return xr.Dataset(
        {
            "distance": distance if by_head else distance.isel(head=0, drop=True),
            "unpatched": (("to", "cells"), distances(here.outputs)),
            "clean": (("to", "cells"), distances(there.outputs)),
        },
        coords={
            "layer": range(len(sites)),
            "positions": list(positions),
            "to": ["X", "-X"],
            "cells": ["masked", "observed"],
        },
        attrs={"four_variance": 4 * clean.task.variance},
    )


def swap_parts(
    before: Any,
    after: Any,
    batch: Batch,
    parts: Mapping[str, str | Sequence[str]] = SWITCHED,
    metrics: Sequence[str] = LOSSES,
) -> xr.Dataset:
    """Two models, mostly of one run before and after the drop, each with parts of the other (`graft`).

    Args:
        before: a model.
        after: another of the same kind.
        batch: to measure.
        parts: name -> parts or globs of `graft`. By default the paper's: "att" queries, keys and values; "mlp" all
            but attention, with embeddings and read-out. What is in neither stays that of the model.
        metrics: measurements of one value.

    Returns:
        Each measurement by (into, parts): the model "before" or "after" with the named parts of the other; "none"
        is the model as it is.

    Raises:
        ValueError: for unknown parts, models of different kind, or a loss of cells that the matrices do not have.
    """
    pairs = {"before": (before, after), "after": (after, before)}
    values = []
    for own, other in pairs.values():
        models = [own, *(graft(own, other, which) for which in parts.values())]
        values.append([measured(model, batch, metrics) for model in models])
    return _by_name(values, {"into": list(pairs), "parts": ["none", *parts]}, metrics)


def copy_check(
    run: Any, batch: Batch, values: Sequence[float | None] | None = None, steps: Sequence[int] | None = None
) -> xr.Dataset:
    """Whether a model copies whatever a hidden cell shows: MASK, or the token of a value (table 1).

    Full-rank matrices show whether what is copied must be of low rank: `replace(task, rank=None).sample(...)`.

    Args:
        run: a Run.
        batch: of `MatrixCompletion`; 512 matrices in the paper.
        values: what to show, None for MASK; by default MASK and the paper's 0.44 and -0.24, by the ratio of this
            task's standard deviation to the paper's, within the limit and rounded to a token. Two that round to one
            token are shown once.
        steps: checkpoints; all by default.

    Returns:
        By (step, value): `observed_loss`, and `copied_loss`, mean over the hidden cells of (output - v)^2, where v
        of MASK is 0. Both are small where the model copies.

    Raises:
        ValueError: for other batches, matrices without masked or without observed cells, or a value beyond the
            largest token's.
    """
    task = (batch := matrices_of(batch)).task
    if values is None:
        scaled = (value * sqrt(task.variance / PAPER_VARIANCE) for value in FILLERS)
        values = [None, *(max(-task.limit, min(task.limit, value)) for value in scaled)]
    if wrong := [value for value in values if value is not None and abs(value) > task.limit]:
        raise ValueError(f"tokens reach from {-task.limit} to {task.limit}, got {wrong[0]}; choose other values=")
    shown = [(batch, 0.0) if value is None else _filled(batch, task.token(torch.tensor(value))) for value in values]
    named = {"MASK" if value is None else f"{v:g}": (b, v) for value, (b, v) in zip(values, shown)}
    for kind in ("masked", "observed"):
        cells_of(batch, kind)

    def look(model: Any) -> xr.Dataset:
        found = [measure(model, b, ["observed_loss", _copied(v)]) for b, v in named.values()]
        losses = [[float(loss) for loss in losses.values()] for losses in found]
        return _by_name(losses, {"value": list(named)}, ("observed_loss", "copied_loss"))

    return map_checkpoints(run, look, steps)


def _filled(batch: MatrixBatch, token: Tensor) -> tuple[MatrixBatch, float]:
    """The batch with a token in its hidden cells, and what the token stands for."""
    return replace(batch, filler=int(token)), float(batch.task.value(token))


def _copied(value: float) -> Callable[[Trace], Tensor]:
    @requires("outputs")
    def copied_loss(t: Trace) -> Float[Tensor, " batch"]:
        return mean_over_cells((t.outputs - value).square(), ~t.batch.observed)  # type: ignore[attr-defined]

    return copied_loss


def measured(model: Any, batch: Batch, metrics: Sequence[str]) -> list[float]:
    """Measurements of one value each, in the order of `metrics`.

    Raises:
        ValueError: for several values, or a loss of masked or observed cells of matrices that have none.
    """
    if isinstance(batch, MatrixBatch):
        for kind in ("masked", "observed"):
            if f"{kind}_loss" in metrics:
                cells_of(batch, kind)
    found = measure(model, batch, metrics)
    if list(found) != list(metrics) or any(value.ndim for value in found.values()):
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
        raise ValueError(f"watch measurements of one value by their whole names, each once; got {sizes}")
    return [float(value) for value in found.values()]


def _by_name(values: list[Any], axes: dict[str, list[str]], names: Sequence[str]) -> xr.Dataset:
    """A variable for each entry along the last axis of the nested lists."""
    grid = xr.DataArray(values, coords=axes | {"measurement": list(names)}, dims=[*axes, "measurement"])
    return grid.to_dataset("measurement")
