"""What attention heads look at in a matrix with hidden cells (arXiv 2410.22244, figs. 4, 22, 23).

atlas = head_atlas(run.model(10_000), batch)                       # maps, attention by category, labels
head_atlas(model, replace(task, mask="row").sample(256, seed=0))   # the same under a structured mask
pl.papers.matrix_completion.plots.head_maps(atlas)
"""

from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Bool
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens._signals import without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import PATTERN_HOOKS
from plateaulens.tasks.matrices.completion import MatrixBatch, MatrixCompletion
from plateaulens.tracing.traces import trace

NONE = "none"  # the label of a head without a category
LEAST = 2.0  # how often chance a category must be to give its name to a head
NEAR = 0.95  # of the largest ratio; see `head_atlas`


@without_gradients
def head_atlas(model: Any, batch: Batch, queries: str = "masked") -> xr.Dataset:
    """Each head's mean map, and how much of its attention goes to which keys.

    Chance is what even attention over all keys would give to a category, on the masks of this very batch. A head is
    labeled by the category with the largest ratio of mass to chance, if that is above 2. A category that holds
    another has nearly the ratio of it where the head does not tell their keys apart; hence the first of the
    categories, the wider ones before the narrower, that has 95 % of the largest.

    Args:
        model: any hooked model.
        batch: of `MatrixCompletion`; 256 matrices in the paper.
        queries: the cells whose attention is counted: "masked", "observed" or "all". Maps always show all queries.

    Returns:
        `pattern` (layer head query key), the mean over the batch; `mass` (layer head category), the mean over the
        queries; `chance` (category); `ratio` of these two; `label` (layer head); `masked` (key), the share of the
        batch that hides a cell. Attributes: `rows`, `cols`, `queries`.

    Raises:
        ValueError: for other batches, an unknown kind of queries, or matrices without such a cell.
    """
    asked = cells_of(matrices_of(batch), queries).float()
    t = trace(model, batch, [PATTERN_HOOKS])
    asked, seen = asked.to(t.batch.tokens.device), t.batch.observed  # type: ignore[attr-defined]
    members = categories(t.batch)  # type: ignore[arg-type]
    member = torch.stack(list(members.values()), 1).float()
    sums = "batch head query key, batch category query key, batch query -> head category"
    maps = {layer: pattern.float() for layer, pattern in t.pattern().maps.items()}  # numpy knows no bfloat16
    mass = torch.stack([einsum(pattern, member, asked, sums) for pattern in maps.values()]) / asked.sum()
    chance = einsum(member.mean(-1), asked, "batch category query, batch query -> category") / asked.sum()
    found = xr.Dataset(
        {
            "pattern": (("layer", "head", "query", "key"), np.stack([m.mean(0).cpu().numpy() for m in maps.values()])),
            "mass": (("layer", "head", "category"), mass.cpu().numpy()),
            "chance": ("category", chance.cpu().numpy()),
            "masked": ("key", 1 - seen.float().mean(0).cpu().numpy()),
        },
        coords={"layer": list(maps), "head": range(mass.shape[1]), "category": list(members)},
        attrs={"rows": t.batch.task.rows, "cols": t.batch.task.cols, "queries": queries},
    )
    found["ratio"] = found.mass / found.chance.where(found.chance > 0)
    best = found.ratio.max("category")
    first = (found.ratio >= NEAR * best).argmax("category")
    found["label"] = found.category[first].where(best > LEAST, NONE).drop_vars("category")
    return found


def head_groups(atlas: xr.Dataset) -> dict[str, list[tuple[int, int]]]:
    """Label -> its (layer, head) pairs, those without a label left out; what `head_ablations` takes."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for (layer, head), label in np.ndenumerate(atlas.label.values):
        if label != NONE:
            groups.setdefault(str(label), []).append((int(atlas["layer"][layer]), int(atlas["head"][head])))
    return groups


def categories(batch: MatrixBatch) -> dict[str, Bool[Tensor, "batch query key"]]:
    """Which keys of each query belong to a category, the wider categories first; they overlap."""
    observed = batch.observed
    cell = torch.arange(observed.shape[1], device=observed.device)
    row, column = cell // batch.task.cols, cell % batch.task.cols
    itself = cell[:, None] == cell
    in_row, in_column = ((of[:, None] == of) & ~itself for of in (row, column))
    shown = observed[:, None]
    found = {
        "masked": ~shown,
        "observed": shown,
        "same row": in_row,
        "same column": in_column,
        "observed same row": in_row & shown,
        "observed same column": in_column & shown,
        "self": itself,
    }
    return {name: keys.expand(len(observed), len(cell), -1) for name, keys in found.items()}


def cells_of(batch: MatrixBatch, kind: str) -> Bool[Tensor, "batch pos"]:
    """The "masked" cells, the "observed" ones, or "all".

    Raises:
        ValueError: for an unknown kind, or when there is no such cell: a mean over none would be NaN.
    """
    seen = batch.observed
    cells = look_up("kind of cells", kind, {"masked": ~seen, "observed": seen, "all": torch.ones_like(seen)})
    if not cells.any():
        raise ValueError(f"none of these {len(batch)} matrices has {kind} cells; choose another p_mask or other cells")
    return cells


def matrices_of(batch: Batch) -> MatrixBatch:
    """The batch, once it is one of matrices with hidden cells.

    Raises:
        ValueError: for any other.
    """
    if not isinstance(batch, MatrixBatch) or not isinstance(batch.task, MatrixCompletion):
        raise ValueError(f"this needs matrices with hidden cells, a batch of MatrixCompletion; got {batch!r}")
    return batch
