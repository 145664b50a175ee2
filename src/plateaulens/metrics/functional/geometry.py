"""How hidden states lie: parallel (collapse), of low rank, large or small.

All take the states of one example's outputs, [..., out, d_model], and reduce the last two axes; anisotropy
compares examples, [..., batch, out, d_model], and keeps a value of each. Where answers are ragged, `valid` says which
outputs exist, and the others do not count; with too few left to compare, NaN.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens.metrics.functional.precision import wide

Valid = Bool[Tensor, "*batch out"]


def _existing(x: Float[Tensor, "*batch out d"], valid: Valid | None) -> tuple[Tensor, Bool[Tensor, "*batch out"]]:
    """`x` with zeros for the outputs that do not exist, and which do: all unless `valid` says so."""
    exist = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if valid is None else valid
    return wide(x).where(exist[..., None], 0.0), exist


def _unit(hidden: Float[Tensor, "*batch out d_model"]) -> Float[Tensor, "*batch out d_model"]:
    return F.normalize(wide(hidden), dim=-1)


def _centered(
    hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None, axes: tuple[int, ...]
) -> Float[Tensor, "*batch out d_model"]:
    """Less the mean over `axes`."""
    states, exist = _existing(hidden, valid)
    return hidden - states.sum(axes, keepdim=True) / exist[..., None].sum(axes, keepdim=True)


def cosine_matrix(hidden: Float[Tensor, "*batch out d_model"]) -> Float[Tensor, "*batch out out"]:
    """cos(h_i, h_j) for every pair of outputs."""
    unit = _unit(hidden)
    return unit @ unit.mT


def mean_pairwise_cosine(
    hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*batch"]:
    r"""Mean of cos(h_i, h_j) over the pairs i < j (arXiv 2506.13688, section on representation collapse).

    One pass instead of a loop over pairs: with unit vectors u_i, \|sum_i u_i\|^2 holds every pair twice
    and every self-product once. With fewer than two outputs there is no pair: NaN.
    """
    unit, exist = _existing(_unit(hidden), valid)
    n = exist.sum(-1)
    pairs = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return pairs * (n > 1) / (n * (n - 1))


def mean_cosine_of(
    hidden: Float[Tensor, "*batch out d_model"], pairs: Bool[Tensor, "*#batch out out"]
) -> Float[Tensor, "*batch"]:
    """Mean of cos(h_i, h_j) over the pairs that `pairs` marks; without any, NaN."""
    return (cosine_matrix(hidden) * pairs).sum((-2, -1)) / pairs.sum((-2, -1))


def mean_norm(hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None) -> Float[Tensor, "*batch"]:
    """Mean Euclidean norm of the outputs' states (arXiv 2506.13688, figs 41 and 42)."""
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
    """Of the states as rows; rows of zeros add singular values of zero only."""
    return torch.linalg.svdvals(_existing(hidden, valid)[0])


def participation_ratio(
    hidden: Float[Tensor, "*batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*batch"]:
    r"""(\sum_i l_i)^2 / \sum_i l_i^2 over the eigenvalues of the covariance of the outputs' states (Gao et al. 2017).

    From traces, without an eigenvalue: with the centered states as rows of X, \|X\|_F^4 / \|X X^T\|_F^2.
    """
    centered, _ = _existing(_centered(hidden, valid, (-2,)), valid)
    centered = centered / centered.abs().amax((-2, -1), keepdim=True)  # fourth powers leave float32 early
    gram = centered @ centered.mT
    return centered.square().sum((-2, -1)).square() / gram.square().sum((-2, -1))


def anisotropy(
    hidden: Float[Tensor, "*more batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*more batch"]:
    """Mean cosine of an example's states with those of all other examples (anisotropy of arXiv 1909.00512).

    High when all states point one way, whatever the text; collapse compares the states within one answer.
    The mean over examples is that over all pairs of different examples, if their answers are equally long. With one
    example alone: NaN.
    """
    unit, exist = _existing(_unit(hidden), valid)
    sums, n = unit.sum(-2), exist.sum(-1)
    others, rest = sums.sum(-2, keepdim=True) - sums, n.sum(-1, keepdim=True) - n
    return (sums * others).sum(-1) * (rest > 0) / (n * rest)


def centered_anisotropy(
    hidden: Float[Tensor, "*more batch out d_model"], valid: Valid | None = None
) -> Float[Tensor, "*more batch"]:
    """Anisotropy once the mean state is taken away: what is left besides one common direction (arXiv 1702.01417)."""
    return anisotropy(_centered(hidden, valid, (-3, -2)), valid)
