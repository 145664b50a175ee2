"""L-BFGS of many problems at once, each with its own line search and its own end."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def lbfgs(
    value: Callable[..., Tensor],
    start: Float[Tensor, "problem parameter"],
    data: tuple[Tensor, ...],
    tolerance: float,
    max_iter: int,
    memory: int = 10,
) -> tuple[Float[Tensor, "problem parameter"], Float[Tensor, "problem 1"]]:
    """Minimize functions of their own parameters each, by L-BFGS with backtracking (Liu and Nocedal 1989).

    A problem ends with a small gradient, or where rounding does: when `memory` steps gain less than 8 eps of its value.

    Args:
        value: parameters [problem parameter] and data -> [problem].
        start: where to begin.
        data: tensors with an entry for each problem.
        tolerance: largest entry of the gradient to be left.
        max_iter: steps to take.
        memory: pairs of steps and changes of gradient to remember.

    Returns:
        The parameters, and the largest entry of each gradient that was left.
    """

    def both(w: Tensor, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            f = value(w, *data)
            return f.detach()[:, None], torch.autograd.grad(f.sum(), w)[0]

    w, places = start, torch.arange(len(start), device=start.device)
    found, left = torch.empty_like(start), torch.empty_like(start[:, :1])
    f, g = both(w, data)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, and 1 / (s . y) or 0 where they say nothing
    values, least = [f], 8 * torch.finfo(f.dtype).eps
    for step in range(max_iter + 1):
        found[places], left[places] = w, g.abs().amax(1, keepdim=True)
        gains = len(values) <= memory or (values[0] - f > least * f.abs())[:, 0]
        on = (left[places, 0] > tolerance) & gains
        if step == max_iter or not on.any():
            break
        if not on.all():
            data, pairs = tuple(t[on] for t in data), [(s[on], y[on], r[on]) for s, y, r in pairs]
            w, f, g, places, values = w[on], f[on], g[on], places[on], [v[on] for v in values]
        direction = -_two_loops(g, pairs)
        slope = _dot(g, direction)
        size = torch.ones_like(slope) if pairs else 1 / g.norm(dim=1, keepdim=True).clamp(min=1)
        new, change = both(w + size * direction, data)
        for _ in range(20):
            far = ~(new <= f + 1e-4 * size * slope + least * f.abs())[:, 0]  # NaN too is too far
            if not far.any():
                break
            size = size.where(~far[:, None], size / 2)
            new[far], change[far] = both((w + size * direction)[far], tuple(t[far] for t in data))
        s, y = size * direction, change - g
        inner = _dot(s, y)
        pairs = [*pairs, (s, y, (1 / inner).where(inner > 1e-10 * _dot(y, y), 0.0))][-memory:]
        w, f, g, values = w + s, new, change, [*values, new][-memory - 1 :]
    return found, left


def _two_loops(
    g: Float[Tensor, "problem parameter"], pairs: list[tuple[Tensor, Tensor, Tensor]]
) -> Float[Tensor, "problem parameter"]:
    """The inverse Hessian of the pairs times g (Nocedal and Wright 2006, algorithm 7.4)."""
    q, alphas = g, []
    for s, y, r in reversed(pairs):
        alphas.append(r * _dot(s, q))
        q = q - alphas[-1] * y
    if pairs:
        s, y, r = pairs[-1]
        q = q * (1 / (r * _dot(y, y))).where(r > 0, 1.0)
    for (s, y, r), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - r * _dot(y, q)) * s
    return q


def _dot(a: Float[Tensor, "problem parameter"], b: Float[Tensor, "problem parameter"]) -> Float[Tensor, "problem 1"]:
    return (a * b).sum(1, keepdim=True)
