"""The attention progress measure (APM) of arXiv 2506.13688."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens.metrics.functional.precision import at_least_float32


def _masses(
    pattern: Float[Tensor, "*batch head query key"], optimal: Bool[Tensor, "*#batch query key"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Sum of |A| over the optimal entries, and over the rows with an optimal entry; heads are summed."""
    mass = at_least_float32(pattern).abs().sum(-3)
    output_rows = optimal.any(-1, keepdim=True)
    return (mass * optimal).sum((-2, -1)), (mass * output_rows).sum((-2, -1))


def attention_progress(
    pattern: Float[Tensor, "*batch head query key"], optimal: Bool[Tensor, "*#batch query key"]
) -> Float[Tensor, "*batch"]:
    r"""Share of the attention on the optimal entries, for each sample.

    APM_s = \sum_{(r,c) in Omega} |A_rc| / \sum_{r,c} |A_rc|, over the rows r in which Omega has an entry (the output
    rows); heads are summed inside both sums. The mean over samples is the measure of arXiv 2506.13688 (training code).
    Absolute values are taken because linear attention is signed.

    Args:
        pattern: Attention maps A.
        optimal: The optimal map Omega, of all samples or of each.
    """
    on_optimal, total = _masses(pattern, optimal)
    return on_optimal / total


def attention_progress_global(
    pattern: Float[Tensor, "batch head query key"], optimal: Bool[Tensor, "#batch query key"]
) -> Float[Tensor, ""]:
    """Attention progress with sums over the batch taken before dividing (arXiv 2506.13688, random-freeze script)."""
    on_optimal, total = _masses(pattern, optimal)
    return on_optimal.sum(-1) / total.sum(-1)


def softmax_pattern(scores: Float[Tensor, "*batch head query key"]) -> Float[Tensor, "*batch head query key"]:
    """Causal softmax of attention scores, whose entries above the diagonal are ignored.

    It makes linear attention comparable with softmax attention: attention progress of this pattern depends on which
    keys the scores prefer.
    """
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return at_least_float32(scores).masked_fill(future, float("-inf")).softmax(-1)
