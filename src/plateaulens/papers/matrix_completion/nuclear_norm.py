r"""Completion by the least nuclear norm: what a matrix would be if nothing were known of it but a low rank.

    completed = complete_by_nuclear_norm(x, observed)                                      # equals x where observed
    completed = complete_by_nuclear_norm(x, observed, penalty=1e-3)                        # is near x there
    sweep = complete_by_nuclear_norm(x, observed, penalty=torch.tensor([[5e-4], [1e-3]]))  # [2 batch row col]

Both problems are one. With h = penalty (number of observed cells) / 2, the optimum Z has a Y that is 0 where nothing
is observed, with

    Z + h Y = x where observed,     \|Y\|_2 <= 1,     <Z, Y> = \|Z\|_*.

Without a penalty Y is the multiplier of Z = x. Many small matrices are solved at once in the semidefinite form

    least tr(P) / 2 + h \|Y\|^2 / 2,     P = [[., Z], [Z', .]] and D = [[1, -Y], [-Y', 1]] positive semidefinite,

by a primal-dual interior-point method: the direction of Helmberg et al. (1996), the corrector of Mehrotra (1992). Every
iterate keeps the constraint, so that <P, D> / 2 bounds how far it is from the least. A step solves for all entries of Y
at once, so this is for matrices of up to a few hundred cells; for them about ten steps do what splitting methods need
hundreds or thousands for. Where several matrices share the least norm it goes to their analytic center: a cell whose
row and column no chain of observed cells connects (`metrics.disconnected`) is 0.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens._signals import without_gradients

SYSTEM_ENTRIES = 2**22  # entries of the linear systems that are worked on at once
NEAR = 0.98  # of the way to where P or D would be singular


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

    With a penalty, that of least mean of (Z - x)^2 over the observed cells, plus penalty \|Z\|_*. Both are baselines
    of arXiv 2410.22244, there by cvxpy. Computes in float64 on the device of x.

    Args:
        x: the matrices; what they hold where nothing is observed is not read.
        observed: which cells are known.
        penalty: not negative; at 0 its limit, Z = x where observed. A tensor has the leading axes of the result, or
            broadcasts with those of x.
        tol: how far \|Z\|_* may be above its least, over the Frobenius norm of the observed cells, which it cannot
            be below; with a penalty, the same for the objective over the penalty. float64 allows about 1e-8.
        max_steps: of the interior-point method; about 10 are needed.

    Raises:
        ValueError: for observed cells that are not finite, or a negative penalty.

    Warns:
        RuntimeWarning: when matrices end above `tol`: how many, and the farthest.
    """
    known = torch.where(observed, x, 0.0).double()
    strength = torch.as_tensor(penalty, dtype=torch.double, device=x.device)[..., None, None]
    if (bad := ~known.isfinite()).any():
        raise ValueError(f"x must be finite where observed, got {int(bad.sum())} cells that are not; mask them")
    if not (fine := (strength >= 0) & strength.isfinite()).all():
        raise ValueError(f"penalty must be 0 or more and finite, got {float(strength[~fine][0])}")
    known, seen, strength = torch.broadcast_tensors(known, observed, strength)
    size = known.shape[-2:]
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (known, seen, strength[..., :1, :1])]
    parts = [t.split(max(1, SYSTEM_ENTRIES // size.numel() ** 2)) for t in flat]
    found = [least_norm(k, o, s, tol, max_steps) for k, o, s in zip(*parts)]
    z, _, gap = (torch.cat(t) for t in zip(*found))
    if (late := ~(gap <= tol)).any():
        warnings.warn(
            f"{int(late.sum())} of {len(gap)} matrices may be above the least by more than tol={tol:.0e}, "
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
    r"""Z, its certificate Y, and the gap <P, D> / 2 between their objectives over \|known\|_F.

    Each is worked on until its gap is small or rounding ends it. Where nothing is observed `known` is 0, and Y.
    """
    scale = known.norm(dim=(1, 2), keepdim=True)
    scale = scale.where(scale > 0, 1.0)
    x, h, seen = known / scale, penalty / scale * observed.sum((1, 2), keepdim=True) / 2, observed
    z, y, gap = torch.zeros_like(x), torch.zeros_like(x), torch.full_like(scale[:, 0, 0], torch.inf)
    places, m, one = torch.arange(len(x), device=x.device), x.shape[1], torch.eye(sum(x.shape[1:])).to(x)
    pair = torch.stack([2 * one + _bordered(x), one.expand(len(x), -1, -1)])  # P and D
    for step in range(max_steps + 1):
        roots, failed = torch.linalg.cholesky_ex(pair)
        sound = (failed == 0).all(0)
        at, (p, d) = places[sound], pair[:, sound]
        z[at], y[at], gap[at] = p[:, :m, m:], -d[:, :m, m:], (p * d).sum((1, 2)) / 2
        on = sound & (gap[places] > tol)
        if step == max_steps or not on.any():
            break
        if not on.all():
            places, x, h, seen, pair, roots = places[on], x[on], h[on], seen[on], pair[:, on], roots[:, on]
        pair = pair + _move(x, h, seen, pair, roots)
    return torch.where(observed & (penalty == 0), known, scale * z), y, gap


def _move(
    x: Float[Tensor, "batch row col"],
    h: Float[Tensor, "batch 1 1"],
    seen: Bool[Tensor, "batch row col"],
    pair: Float[Tensor, "2 batch side side"],
    roots: Float[Tensor, "2 batch side side"],
) -> Float[Tensor, "2 batch side side"]:
    """The change of P and D: a predictor to learn how far to aim, then a step with its corrector (Mehrotra 1992)."""
    p, d, m, side = *pair, x.shape[1], pair.shape[-1]
    inverse = torch.cholesky_inverse(roots[1])
    u, z, v, y = p[:, :m, :m], p[:, :m, m:], p[:, m:, m:], -d[:, :m, m:]
    s, q, t = inverse[:, :m, :m], inverse[:, :m, m:], inverse[:, m:, m:]
    # The linear map from dY to twice the upper right block of the symmetric part of P [0 dY; dY' 0] D^-1.
    straight = torch.einsum("bcik,bcjl->bijkl", torch.stack([u, s], 1), torch.stack([t, v], 1))
    across = torch.einsum("bcil,bckj->bijkl", torch.stack([z, q], 1), torch.stack([q, z], 1))
    cells = seen.flatten(1).to(x)
    system = (straight + across).flatten(3).flatten(1, 2) * (cells[:, :, None] * cells[:, None] / 2)
    system.diagonal(dim1=1, dim2=2).add_(torch.where(seen, h, 1.0).flatten(1))
    factors, pivots, _ = torch.linalg.lu_factor_ex(system)  # symmetric, but rounding breaks Cholesky's earlier

    def towards(aim: Float[Tensor, "batch side side"]) -> Float[Tensor, "2 batch side side"]:
        """The direction in which P changes by `aim` were D to stay, with Z + h Y = x where observed."""
        lacking = (x - h * y - z - aim[:, :m, m:]).where(seen, 0.0)
        dy = torch.linalg.lu_solve(factors, pivots, lacking.flatten(1)[..., None]).view_as(x)
        dp = aim + _symmetric(p @ _bordered(dy) @ inverse)
        left = (x - h * (y + dy) - z - dp[:, :m, m:]).where(seen, 0.0)  # what rounding left of the constraint
        return torch.stack([dp + _bordered(left), -_bordered(dy)])

    def gap(pair: Tensor) -> Float[Tensor, "batch 1 1"]:
        return (pair[0] * pair[1]).sum((1, 2), keepdim=True)

    dp, dd = first = towards(-p)
    after = gap(pair + _room(roots, first).clamp(max=1.0) * first)
    center = (after / gap(pair)) ** 3 * gap(pair) / side * inverse
    then = towards(center - p - _symmetric(dp @ dd @ inverse))
    return (NEAR * _room(roots, then)).clamp(max=1.0) * then


def _room(
    roots: Float[Tensor, "2 batch side side"], moves: Float[Tensor, "2 batch side side"]
) -> Float[Tensor, "batch 1 1"]:
    """What share of the moves, or how often, both matrices L L' can make and stay positive semidefinite."""
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
