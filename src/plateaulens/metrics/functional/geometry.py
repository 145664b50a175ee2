"""Geometry of hidden states: cosine similarity (collapse), norm, rank, anisotropy.

The functions take the states of an example's outputs [..., out, d_model] and reduce the last two axes; anisotropy
compares examples [..., batch, out, d_model] and returns one value for each. Where answers differ in length, `valid`
marks the outputs that exist, and the others are left out. The value is NaN where too few are left to compare.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens.metrics.functional.precision import at_least_float32

Valid = Bool[Tensor, "*batch out"]


def _existing(x: Float[Tensor, "*batch out d"], valid: Valid | None) -> tuple[Tensor, Bool[Tensor, "*batch out"]]:
    """`x` with zeros for the outputs that do not exist, and the mask of those that do (all without `valid`)."""
    exist = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if valid is None else valid
    return at_least_float32(x).where(exist[..., None], 0.0), exist


def _unit(hidden: Float[Tensor, "*batch out d_model"]) -> Float[Tensor, "*batch out d_model"]:
    return F.normalize(at_least_float32(hidden), dim=-1)


def _centered(
    hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None, axes: tuple[int, ...]
) -> Float[Tensor, "*batch out d_model"]:
    """The states minus their mean over `axes`."""
    states, exist = _existing(hidden, valid)
    return hidden - states.sum(axes, keepdim=True) / exist[..., None].sum(axes, keepdim=True)


def cosine_matrix(hidden: Float[Tensor, "*batch out d_model"]) -> Float[Tensor, "*batch out out"]:
    """Cosine similarity cos(h_i, h_j) of every pair of outputs."""
    unit = _unit(hidden)
    return unit @ unit.mT


def mean_pairwise_cosine(
    hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*batch"]:
    r"""Mean of cos(h_i, h_j) over the pairs i < j (arXiv 2506.13688, section on representation collapse).

    Computed without a loop over pairs: with unit vectors u_i, \|sum_i u_i\|^2 contains every pair twice and every
    self-product once. NaN with fewer than two outputs.
    """
    unit, exist = _existing(_unit(hidden), valid)
    n = exist.sum(-1)
    pairs = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return pairs * (n > 1) / (n * (n - 1))


def mean_cosine_of(
    hidden: Float[Tensor, "*batch out d_model"], pairs: Bool[Tensor, "*#batch out out"]
) -> Float[Tensor, "*batch"]:
    """Mean of cos(h_i, h_j) over the pairs marked in `pairs`; NaN without any."""
    return (cosine_matrix(hidden) * pairs).sum((-2, -1)) / pairs.sum((-2, -1))


def mean_norm(hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None) -> Float[Tensor, "*batch"]:
    """Mean Euclidean norm of the states (arXiv 2506.13688, figs 41 and 42)."""
    states, exist = _existing(hidden, valid)
    return states.norm(dim=-1).sum(-1) / exist.sum(-1)


def stable_rank(hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None) -> Float[Tensor, "*batch"]:
    r"""\|X\|_F^2 / \|X\|_2^2 with the states as rows (Rudelson and Vershynin 2007): between 1 and rank X."""
    squares = _singular_values(hidden, valid).square()
    return squares.sum(-1) / squares[..., 0]


def effective_rank(hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None) -> Float[Tensor, "*batch"]:
    """RankMe: exp of the entropy of the singular values' shares (Roy and Vetterli 2007; arXiv 2210.02885, eq. 1-2)."""
    values = _singular_values(hidden, valid)
    return torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1).exp()


def _singular_values(hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None) -> Float[Tensor, "*batch rank"]:
    """Singular values of the matrix with the states as rows; outputs that do not exist add only zeros."""
    return torch.linalg.svdvals(_existing(hidden, valid)[0])


def participation_ratio(
    hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*batch"]:
    r"""(\sum_i l_i)^2 / \sum_i l_i^2 over the eigenvalues l_i of the covariance of the states (Gao et al. 2017).

    Computed without eigenvalues: with the centered states as rows of X, it is \|X\|_F^4 / \|X X^T\|_F^2.
    """
    centered, _ = _existing(_centered(hidden, valid, (-2,)), valid)
    centered = centered / centered.abs().amax((-2, -1), keepdim=True)  # fourth powers overflow float32
    gram = centered @ centered.mT
    return centered.square().sum((-2, -1)).square() / gram.square().sum((-2, -1))


def anisotropy(
    hidden: Float[Tensor, "*more batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*more batch"]:
    """Mean cosine of an example's states with those of all other examples (anisotropy of arXiv 1909.00512).

    It is high when the states of all examples have one direction in common; collapse compares the states within one
    answer. If all answers have equal length, the mean over examples is the mean over all pairs of different examples.
    NaN for a single example.
    """
    unit, exist = _existing(_unit(hidden), valid)
    sums, n = unit.sum(-2), exist.sum(-1)
    other_sums, n_others = sums.sum(-2, keepdim=True) - sums, n.sum(-1, keepdim=True) - n
    return (sums * other_sums).sum(-1) * (n_others > 0) / (n * n_others)


def centered_anisotropy(
    hidden: Float[Tensor, "*more batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*more batch"]:
    """Anisotropy of the states minus their mean over the batch, a common direction removed (arXiv 1702.01417)."""
    return anisotropy(_centered(hidden, valid, (-3, -2)), valid)
