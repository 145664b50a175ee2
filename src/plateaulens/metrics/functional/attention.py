"""How far attention has come: the attention progress measure of arXiv 2506.13688."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens.metrics.functional.precision import wide


def _masses(
    pattern: Float[Tensor, "*batch head query key"], optimal: Bool[Tensor, "*#batch query key"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """|A| on the optimal entries, and on all entries of the rows that have one; heads are summed."""
    mass = wide(pattern).abs().sum(-3)
    rows = optimal.any(-1, keepdim=True)
    return (mass * optimal).sum((-2, -1)), (mass * rows).sum((-2, -1))


def attention_progress(
    pattern: Float[Tensor, "*batch head query key"], optimal: Bool[Tensor, "*#batch query key"]
) -> Float[Tensor, "*batch"]:
    r"""Share of attention that looks where it should, for each sample.

    APM_s = \sum_{(r,c) in Omega} |A_rc| / \sum_{r,c} |A_rc|, over the rows r in which Omega has an entry
    (the output rows); heads are summed inside both sums. The mean over samples is the paper's measure
    (arXiv 2506.13688, training code; per-sample ratio, absolute values because linear attention is signed).
    """
    on, total = _masses(pattern, optimal)
    return on / total


def attention_progress_global(
    pattern: Float[Tensor, "batch head query key"], optimal: Bool[Tensor, "#batch query key"]
) -> Float[Tensor, ""]:
    """The variant that sums over the batch before it divides (arXiv 2506.13688, random-freeze script)."""
    on, total = _masses(pattern, optimal)
    return on.sum(-1) / total.sum(-1)


def softmax_pattern(scores: Float[Tensor, "*batch head query key"]) -> Float[Tensor, "*batch head query key"]:
    """Causal softmax of attention scores, whatever stands above the diagonal (0 in linear attention, -inf in softmax).

    Makes linear attention comparable with softmax attention: the progress of this pattern is bounded by
    what the scores prefer, not by how large they are.
    """
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return wide(scores).masked_fill(later, float("-inf")).softmax(-1)
