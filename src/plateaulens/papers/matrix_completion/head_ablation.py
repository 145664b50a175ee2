"""Losses of a model without some attention heads (arXiv 2410.22244).

head_ablations(model, batch, head_groups(head_atlas(model, batch)))
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import xarray as xr

from plateaulens.batch import Batch
from plateaulens.hooks import n_layers
from plateaulens.interventions import AblateHeads, intervene
from plateaulens.papers.matrix_completion.cells import LOSSES, dataset_of, scalar_metrics
from plateaulens.protocols import HookedModel

AblationMode = Literal["mean", "uniform", "zero"]


def head_ablations(
    model: HookedModel,
    batch: Batch,
    groups: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    modes: Sequence[AblationMode] = ("mean", "uniform", "zero"),
    metrics: Sequence[str] = LOSSES,
) -> xr.Dataset:
    """Metrics with each head, each layer of heads and each named group of heads ablated, by modes of `AblateHeads`.

    The paper's "uniform ablation" is "mean" in its released code, which does not change a head that attends by position
    only; the result depends on the batch.

    Args:
        model: Any hooked model.
        batch: Batch on which metrics are computed and patterns are averaged.
        groups: Name -> (layer, head) pairs, for example those of `head_groups`.
        modes: Modes of ablation.
        metrics: Names of metrics that are one number for the batch.

    Returns:
        Each metric over (ablated, mode). `ablated` is "intact", then "L0H1" ..., "layer 0" ..., and the groups' names.

    Raises:
        ValueError: For an unknown mode, metric or head, a metric of several values, or a loss over masked or observed
            cells if the batch has none.
    """
    layers, heads = range(n_layers(model)), range(model.cfg.n_heads)
    heads_by_name: dict[str, Sequence[tuple[int, int]]] = {
        **{f"L{layer}H{head}": [(layer, head)] for layer in layers for head in heads},
        **{f"layer {layer}": [(layer, head) for head in heads] for layer in layers},
        **(groups or {}),
    }
    values = [[scalar_metrics(model, batch, metrics)] * len(modes)]
    for ablated in heads_by_name.values():
        values.append([])
        for mode in modes:
            with intervene(model, AblateHeads(ablated, mode)):
                values[-1].append(scalar_metrics(model, batch, metrics))
    return dataset_of(values, {"ablated": ["intact", *heads_by_name], "mode": list(modes)}, metrics)
