"""What attention heads attend to in matrices with masked cells (arXiv 2410.22244, figs. 4, 22, 23).

atlas = head_atlas(run.model(10_000), batch)                       # mean patterns, attention by category, labels
head_atlas(model, replace(task, mask="row").sample(256, seed=0))   # the same under a structured mask
pl.papers.matrix_completion.plots.head_maps(atlas)
"""

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Bool
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import PATTERN_HOOKS
from plateaulens.papers.matrix_completion.cells import CellKind, as_matrix_batch, select_cells
from plateaulens.protocols import HookedModel
from plateaulens.tasks.matrices.completion import MatrixBatch
from plateaulens.tracing.traces import trace

UNLABELED = "none"  # label of a head whose ratios to chance are all at most MIN_RATIO
MIN_RATIO = 2.0
TIE_SHARE = 0.95  # ratios of at least this share of a head's largest count as equal to it


@without_gradients
def head_atlas(model: HookedModel, batch: Batch, queries: CellKind = "masked") -> xr.Dataset:
    """Mean attention pattern of each head, and its attention to categories of keys relative to chance.

    Chance is the share that uniform attention over all keys gives to a category, with the masks of this batch. A head
    is labeled by the category with the largest ratio of attention to chance, if that is above 2. Where a head does not
    distinguish the keys of a category from those of a wider one that contains it, their ratios are nearly equal;
    therefore the label is the first category, wider ones before narrower ones, with 95 % of the largest ratio.

    Args:
        model: Any hooked model.
        batch: A batch of `MatrixCompletion`; 256 matrices in the paper.
        queries: Cells whose attention is counted. Mean patterns always have all queries.

    Returns:
        `pattern` (layer head query key), the mean over the batch; `mass` (layer head category), the attention to the
        category's keys, mean over the queries; `chance` (category); `ratio`, mass over chance; `label` (layer head);
        `masked` (key), the share of the batch in which a cell is masked. Attributes: `rows`, `cols`, `queries`.

    Raises:
        ValueError: For a batch of another task, an unknown kind of queries, or a batch without such cells.
    """
    matrices = as_matrix_batch(batch)
    counted = select_cells(matrices, queries).float()
    t = trace(model, matrices, [PATTERN_HOOKS])
    traced = as_matrix_batch(t.batch)  # on the model's device
    counted = counted.to(traced.tokens.device)
    members = categories(traced)
    member = torch.stack(list(members.values()), 1).float()
    sums = "batch head query key, batch category query key, batch query -> head category"
    patterns = {layer: pattern.float() for layer, pattern in t.pattern().maps.items()}  # numpy has no bfloat16
    mass = torch.stack([einsum(p, member, counted, sums) for p in patterns.values()]) / counted.sum()
    chance = einsum(member.mean(-1), counted, "batch category query, batch query -> category") / counted.sum()
    means = np.stack([pattern.mean(0).cpu().numpy() for pattern in patterns.values()])
    atlas = xr.Dataset(
        {
            "pattern": (("layer", "head", "query", "key"), means),
            "mass": (("layer", "head", "category"), mass.cpu().numpy()),
            "chance": ("category", chance.cpu().numpy()),
            "masked": ("key", 1 - traced.observed.float().mean(0).cpu().numpy()),
        },
        coords={"layer": list(patterns), "head": range(mass.shape[1]), "category": list(members)},
        attrs={"rows": matrices.task.rows, "cols": matrices.task.cols, "queries": queries},
    )
    atlas["ratio"] = atlas.mass / atlas.chance.where(atlas.chance > 0)
    largest = atlas.ratio.max("category")
    first = (atlas.ratio >= TIE_SHARE * largest).argmax("category")
    atlas["label"] = atlas.category[first].where(largest > MIN_RATIO, UNLABELED).drop_vars("category")
    return atlas


def head_groups(atlas: xr.Dataset) -> dict[str, list[tuple[int, int]]]:
    """(layer, head) pairs of each label of an atlas, without unlabeled heads; the `groups` of `head_ablations`."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for (layer, head), label in np.ndenumerate(atlas.label.values):
        if label != UNLABELED:
            groups.setdefault(str(label), []).append((int(atlas["layer"][layer]), int(atlas["head"][head])))
    return groups


def categories(batch: MatrixBatch) -> dict[str, Bool[Tensor, "batch query key"]]:
    """Which keys are in each category, for every query; the wider categories first. Categories overlap."""
    observed = batch.observed
    cell = torch.arange(observed.shape[1], device=observed.device)
    row, column = cell // batch.task.cols, cell % batch.task.cols
    is_self = cell[:, None] == cell
    in_row, in_column = ((line[:, None] == line) & ~is_self for line in (row, column))
    is_observed = observed[:, None]
    members = {
        "masked": ~is_observed,
        "observed": is_observed,
        "same row": in_row,
        "same column": in_column,
        "observed same row": in_row & is_observed,
        "observed same column": in_column & is_observed,
        "self": is_self,
    }
    return {name: keys.expand(len(observed), len(cell), -1) for name, keys in members.items()}
