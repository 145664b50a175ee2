"""Newton's method for many logistic regressions at once, each with its own line search and its own end."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK_BYTES = 2**25  # bytes of x that are worked on at once
JITTER = 1e-6  # of a Hessian's mean diagonal: float32 sums are no better


def newton(
    w: Float[Tensor, "problem column label"],
    x: Float[Tensor, "problem n column"],
    y: Float[Tensor, "problem n label"],
    share: Float[Tensor, "problem n 1"],
    penalty: Float[Tensor, "problem column column"],
    tolerance: float,
    max_iter: int,
) -> tuple[Float[Tensor, "problem column label"], Float[Tensor, "problem label"]]:
    """The least sum of share [log(1 + e^z) - y z], plus w' P w / 2, with z = x w.

    Args:
        w: where to begin, or what to begin on the way to.
        x: what is regressed on.
        y: 0 or 1.
        share: weights of the rows, 0 for those that do not count.
        penalty: P.
        tolerance: largest entry of the gradient to be left.
        max_iter: steps to take.

    Returns:
        The coefficients, and the largest entry of each gradient that was left; NaN where labels do not vary.
    """
    w, inside = _nearest(w, x, y, share, penalty), share > 0
    varies = (inside & (y > 0)).any(1) & (inside & (y == 0)).any(1)
    found, left = torch.full_like(w, torch.nan), torch.full_like(w[:, 0], torch.nan)
    places, gains, eps = torch.arange(len(x), device=x.device), varies.clone(), torch.finfo(x.dtype).eps
    z = x @ w
    for step in range(max_iter + 1):
        p = z.sigmoid()
        gradient = x.mT @ (share * (p - y)) + penalty @ w
        found[places], left[places] = w, gradient.abs().amax(1)
        on = gains[places] & (left[places] > tolerance)
        if step == max_iter or not on.any():
            break
        if not (some := on.any(1)).all():
            places, x, y, share, penalty = (t[some] for t in (places, x, y, share, penalty))
            w, z, p, gradient, on = (t[some] for t in (w, z, p, gradient, on))
        direction = _solved(x, share * p * (1 - p), penalty, gradient, on)
        slope, dz = (gradient * direction).sum(1, keepdim=True), x @ direction
        size, value = torch.ones_like(slope), _value(z, y, share, w, penalty)
        for _ in range(20):
            new = _value(z + size * dz, y, share, w + size * direction, penalty)
            if (fine := new <= value + 1e-4 * size * slope + 8 * eps * value).all():
                break
            size = size.where(fine, size / 2)
        gains[places] &= (~on) | (-slope > eps * value)[:, 0]
        w = w + size * direction
        z = x @ w  # z + size * dz drifts away where columns are nearly the same
    return found.where(varies[:, None], torch.nan), left.where(varies, torch.nan)


def _nearest(
    w: Float[Tensor, "problem column label"],
    x: Float[Tensor, "problem n column"],
    y: Float[Tensor, "problem n label"],
    share: Float[Tensor, "problem n 1"],
    penalty: Float[Tensor, "problem column column"],
) -> Float[Tensor, "problem column label"]:
    """Where on the way from 0 to w the value is least: other activations can make a start worse than none."""
    if not w.any():
        return w
    sizes, z = (0.0, 0.1, 0.2, 0.5, 1.0), x @ w
    values = torch.stack([_value(size * z, y, share, size * w, penalty) for size in sizes])
    return w * torch.tensor(sizes).to(w)[values.argmin(0)]


def _value(
    z: Float[Tensor, "problem n label"],
    y: Float[Tensor, "problem n label"],
    share: Float[Tensor, "problem n 1"],
    w: Float[Tensor, "problem column label"],
    penalty: Float[Tensor, "problem column column"],
) -> Float[Tensor, "problem 1 label"]:
    return share.mT @ (F.softplus(z) - y * z) + (w * (penalty @ w)).sum(1, keepdim=True) / 2


def _solved(
    x: Float[Tensor, "problem n column"],
    curvature: Float[Tensor, "problem n label"],
    penalty: Float[Tensor, "problem column column"],
    gradient: Float[Tensor, "problem column label"],
    on: Bool[Tensor, "problem label"],
) -> Float[Tensor, "problem column label"]:
    """-H^-1 g of the fits that are on, 0 of the others."""
    direction = torch.zeros_like(gradient)
    problems, labels = on.nonzero(as_tuple=True)
    for some in torch.arange(len(problems), device=x.device).split(max(1, CHUNK_BYTES // x[:1].nbytes)):
        i, j = problems[some], labels[some]
        root = curvature[i, :, j].sqrt()[..., None]
        rows = x * root if len(some) == len(x) and on.all() else x[i].mul_(root)  # of one label: no copy of x
        hessian = (rows.mT @ rows).double() + penalty[i]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        diagonal += JITTER * diagonal.mean(1, keepdim=True) + 1e-30
        factor = torch.linalg.cholesky_ex(hessian).L
        direction[i, :, j] = -torch.cholesky_solve(gradient[i, :, j].double()[..., None], factor)[..., 0].to(x)
    return direction
