"""Representation collapse: how parallel the hidden states of different outputs are."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cosine_matrix(hidden: Float[Tensor, "*batch out d_model"]) -> Float[Tensor, "*batch out out"]:
    """cos(h_i, h_j) for every pair of outputs."""
    unit = F.normalize(hidden, dim=-1)
    return unit @ unit.mT


def mean_pairwise_cosine(hidden: Float[Tensor, "*batch out d_model"]) -> Float[Tensor, "*batch"]:
    r"""Mean of cos(h_i, h_j) over the pairs i < j (arXiv 2506.13688, section on representation collapse).

    One pass instead of a loop over pairs: with unit vectors u_i, \|sum_i u_i\|^2 holds every pair twice
    and every self-product once. With fewer than two outputs there is no pair: NaN.
    """
    unit = F.normalize(hidden, dim=-1)
    n = hidden.shape[-2]
    pairs = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return pairs / (n * (n - 1)) if n > 1 else pairs * float("nan")
