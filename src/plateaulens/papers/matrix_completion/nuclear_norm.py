r"""Matrix completion by minimizing the nuclear norm, the baseline of arXiv 2410.22244, for many matrices at once.

    completed = complete_by_nuclear_norm(x, observed)                                      # equals x where observed
    completed = complete_by_nuclear_norm(x, observed, penalty=1e-3)                        # is near x where observed
    sweep = complete_by_nuclear_norm(x, observed, penalty=torch.tensor([[5e-4], [1e-3]]))  # [2 batch row col]

With h = penalty (number of observed cells) / 2, a matrix Z is optimal, with or without a penalty, if and only if there
is a Y that is 0 where nothing is observed, with

    Z + h Y = x where observed,     \|Y\|_2 <= 1,     <Z, Y> = \|Z\|_*.

Without a penalty Y is the multiplier of Z = x. All matrices are solved together in the semidefinite form

    minimize tr(P) / 2 + h \|Y\|^2 / 2,     P = [[., Z], [Z', .]] and D = [[1, -Y], [-Y', 1]] positive semidefinite,

by a primal-dual interior-point method: the direction of Helmberg et al. (1996), the corrector of Mehrotra (1992). Every
iterate satisfies the constraint, so that <P, D> / 2 bounds its distance to the minimum. A step solves for all entries
of Y at once, so this is for matrices of up to a few hundred cells; they need about ten steps, where splitting methods
need hundreds or thousands. Where several matrices have the least norm it converges to their analytic center: a cell
whose row and column no chain of observed cells connects (`cells.disconnected`) is 0.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens._signals import without_gradients

SYSTEM_ENTRIES = 2**22  # entries of the linear systems that are solved together
STEP_SHARE = 0.98  # share of the largest step that leaves P and D positive semidefinite


@without_gradients
def complete_by_nuclear_norm(
    x: Float[Tensor, "*#batch row col"],
    observed: Bool[Tensor, "*#batch row col"],
    *,
    penalty: float | int | Tensor = 0.0,
    tol: float = 1e-7,
    max_steps: int = 50,
) -> Float[Tensor, "... row col"]:
    r"""The matrix Z of least nuclear norm \|Z\|_*, the sum of its singular values, with Z = x where observed.

    With a penalty, the Z that minimizes the mean of (Z - x)^2 over the observed cells plus penalty \|Z\|_*. Both are
    baselines of arXiv 2410.22244, there by cvxpy. Computes in float64 on the device of x.

    Args:
        x: Matrices; their values where nothing is observed are not read.
        observed: Which cells are observed.
        penalty: Penalty, 0 or more; 0 means Z = x where observed. A tensor has the leading axes of the result, or
            broadcasts with those of x.
        tol: Largest difference of \|Z\|_* to its minimum, relative to the Frobenius norm of the observed cells, which
            is a lower bound of it; with a penalty, the same for the objective over the penalty. float64 allows 1e-8.
        max_steps: Largest number of steps of the interior-point method; about 10 are needed.

    Raises:
        ValueError: For observed cells that are not finite, or a negative penalty.

    Warns:
        RuntimeWarning: If matrices end above `tol`; says how many, and the largest difference.
    """
    known = torch.where(observed, x, 0.0).double()
    strength = torch.as_tensor(penalty, dtype=torch.double, device=x.device)[..., None, None]
    if (bad := ~known.isfinite()).any():
        raise ValueError(f"x must be finite where observed, got {int(bad.sum())} cells that are not; mask them")
    if not (valid := (strength >= 0) & strength.isfinite()).all():
        raise ValueError(f"penalty must be 0 or more and finite, got {float(strength[~valid][0])}")
    known, mask, strength = torch.broadcast_tensors(known, observed, strength)
    size = known.shape[-2:]
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (known, mask, strength[..., :1, :1])]
    parts = [t.split(max(1, SYSTEM_ENTRIES // size.numel() ** 2)) for t in flat]
    solved = [least_norm(k, o, s, tol, max_steps) for k, o, s in zip(*parts)]
    z, _, gap = (torch.cat(t) for t in zip(*solved))
    if (late := ~(gap <= tol)).any():
        warnings.warn(
            f"{int(late.sum())} of {len(gap)} matrices may be above the minimum by more than tol={tol:.0e}, "
            f"by up to {float(gap.max()):.1e}; raise tol, or max_steps={max_steps}",
            RuntimeWarning,
            stacklevel=3,
        )
    return z.reshape(known.shape).to(x.dtype)


def least_norm(
    known: Float[Tensor, "batch row col"],
    observed: Bool[Tensor, "batch row col"],
    penalty: Float[Tensor, "batch 1 1"],
    tol: float,
    max_steps: int,
) -> tuple[Float[Tensor, "batch row col"], Float[Tensor, "batch row col"], Float[Tensor, " batch"]]:
    r"""Z, its certificate Y, and the gap <P, D> / 2 between their objectives, relative to \|known\|_F.

    Each matrix takes steps until its gap is at most `tol` or P or D is numerically singular. Where nothing is observed,
    `known` and Y are 0.
    """
    scale = known.norm(dim=(1, 2), keepdim=True)
    scale = scale.where(scale > 0, 1.0)
    x, h, mask = known / scale, penalty / scale * observed.sum((1, 2), keepdim=True) / 2, observed
    z, y, gap = torch.zeros_like(x), torch.zeros_like(x), torch.full_like(scale[:, 0, 0], torch.inf)
    rows, m, one = torch.arange(len(x), device=x.device), x.shape[1], torch.eye(sum(x.shape[1:])).to(x)
    pair = torch.stack([2 * one + _bordered(x), one.expand(len(x), -1, -1)])  # P and D
    for step in range(max_steps + 1):
        roots, failed = torch.linalg.cholesky_ex(pair)
        regular = (failed == 0).all(0)
        at, (p, d) = rows[regular], pair[:, regular]
        z[at], y[at], gap[at] = p[:, :m, m:], -d[:, :m, m:], (p * d).sum((1, 2)) / 2
        unfinished = regular & (gap[rows] > tol)
        if step == max_steps or not unfinished.any():
            break
        if not unfinished.all():
            rows, x, h, mask = (t[unfinished] for t in (rows, x, h, mask))
            pair, roots = pair[:, unfinished], roots[:, unfinished]
        pair = pair + _step(x, h, mask, pair, roots)
    return torch.where(observed & (penalty == 0), known, scale * z), y, gap


def _step(
    x: Float[Tensor, "batch row col"],
    h: Float[Tensor, "batch 1 1"],
    observed: Bool[Tensor, "batch row col"],
    pair: Float[Tensor, "2 batch side side"],
    roots: Float[Tensor, "2 batch side side"],
) -> Float[Tensor, "2 batch side side"]:
    """Change of P and D: a predictor step determines the centering, then a step with corrector (Mehrotra 1992)."""
    p, d, m, side = *pair, x.shape[1], pair.shape[-1]
    inverse = torch.cholesky_inverse(roots[1])
    u, z, v, y = p[:, :m, :m], p[:, :m, m:], p[:, m:, m:], -d[:, :m, m:]
    s, q, t = inverse[:, :m, :m], inverse[:, :m, m:], inverse[:, m:, m:]
    # The linear map from dY to twice the upper right block of the symmetric part of P [0 dY; dY' 0] D^-1.
    straight = torch.einsum("bcik,bcjl->bijkl", torch.stack([u, s], 1), torch.stack([t, v], 1))
    across = torch.einsum("bcil,bckj->bijkl", torch.stack([z, q], 1), torch.stack([q, z], 1))
    cells = observed.flatten(1).to(x)
    system = (straight + across).flatten(3).flatten(1, 2) * (cells[:, :, None] * cells[:, None] / 2)
    system.diagonal(dim1=1, dim2=2).add_(torch.where(observed, h, 1.0).flatten(1))
    factors, pivots, _ = torch.linalg.lu_factor_ex(system)  # symmetric, but rounding breaks Cholesky's earlier

    def direction(aim: Float[Tensor, "batch side side"]) -> Float[Tensor, "2 batch side side"]:
        """Direction in which P would change by `aim` if D were fixed, keeping Z + h Y = x where observed."""
        lacking = (x - h * y - z - aim[:, :m, m:]).where(observed, 0.0)
        dy = torch.linalg.lu_solve(factors, pivots, lacking.flatten(1)[..., None]).view_as(x)
        dp = aim + _symmetric(p @ _bordered(dy) @ inverse)
        left = (x - h * (y + dy) - z - dp[:, :m, m:]).where(observed, 0.0)  # rounding error of the constraint
        return torch.stack([dp + _bordered(left), -_bordered(dy)])

    def gap(pair: Tensor) -> Float[Tensor, "batch 1 1"]:
        return (pair[0] * pair[1]).sum((1, 2), keepdim=True)

    dp, dd = first = direction(-p)
    after = gap(pair + _largest_step(roots, first).clamp(max=1.0) * first)
    center = (after / gap(pair)) ** 3 * gap(pair) / side * inverse
    then = direction(center - p - _symmetric(dp @ dd @ inverse))
    return (STEP_SHARE * _largest_step(roots, then)).clamp(max=1.0) * then


def _largest_step(
    roots: Float[Tensor, "2 batch side side"], moves: Float[Tensor, "2 batch side side"]
) -> Float[Tensor, "batch 1 1"]:
    """Largest factor of the moves that leaves both matrices L L' positive semidefinite."""
    inner = torch.linalg.solve_triangular(roots, moves, upper=False)
    inner = torch.linalg.solve_triangular(roots, inner.mT, upper=False)
    least = torch.linalg.eigvalsh(_symmetric(inner).nan_to_num(0.0, 0.0, 0.0))[..., :1, None].amin(0)
    return torch.where(least < 0, -1 / least, torch.inf)


def _bordered(z: Float[Tensor, "batch row col"]) -> Float[Tensor, "batch side side"]:
    """[[0, Z], [Z', 0]]."""
    m, n = z.shape[1:]
    return F.pad(z, (m, 0, 0, n)) + F.pad(z.mT, (0, n, m, 0))


def _symmetric(a: Float[Tensor, "*batch side side"]) -> Float[Tensor, "*batch side side"]:
    return (a + a.mT) / 2
