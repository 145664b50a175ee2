"""Losses of two models, before and after the drop, with parts of each other's weights (arXiv 2410.22244)."""

from collections.abc import Mapping, Sequence

import xarray as xr

from plateaulens.batch import Batch
from plateaulens.models.parameter_groups import graft
from plateaulens.papers.matrix_completion.cells import LOSSES, dataset_of, scalar_metrics
from plateaulens.protocols import HookedModel

# What the paper's released code swaps. "att" is without the output weights and the norm after attention.
PAPER_PARTS: dict[str, tuple[str, ...]] = {
    "att": ("qk", "*.attn.v.*"),
    "mlp": ("embed", "pos", "ln_embed", "mlp", "ln2", "unembed"),
}


def swap_parts(
    before: HookedModel,
    after: HookedModel,
    batch: Batch,
    parts: Mapping[str, str | Sequence[str]] = PAPER_PARTS,
    metrics: Sequence[str] = LOSSES,
) -> xr.Dataset:
    """Metrics of two models of the same kind, each as it is and with parts of the other's weights (`graft`).

    Args:
        before: A model, usually that of a step before the drop.
        after: Another one, usually that of a step after the drop.
        batch: Batch on which metrics are computed.
        parts: Name -> parameter groups or globs as in `graft`. By default the paper's: "att" is queries, keys and
            values; "mlp" all but attention, with embeddings and read-out.
        metrics: Names of metrics that are one number for the batch.

    Returns:
        Each metric over (model, parts): the model "before" or "after" with the named parts of the other; the parts
        "none" are the model as it is.

    Raises:
        ValueError: For unknown parts, models of different kinds, or a loss over cells that the batch does not have.
    """
    values = []
    for model, other in ((before, after), (after, before)):
        swapped = [graft(model, other, names) for names in parts.values()]
        values.append([scalar_metrics(each, batch, metrics) for each in (model, *swapped)])
    return dataset_of(values, {"model": ["before", "after"], "parts": ["none", *parts]}, metrics)
