"""Fits of many linear probes at once: least squares and logistic regressions.

    fit = logistic(x, y, l2=1 / (100 * n))          # x [problem n d], y [problem n label]; scikit-learn's C = 100
    fit = logistic(later, y, l2=1 / (100 * n), start=fit)

The problems share nothing but their shape, and the labels of a problem share its x. Each is worked on until its own
gradient is small. Solvers see x in other coordinates, centered and alike in variance, which changes the way to the
optimum and not the optimum: weights, biases and penalties are those of x as it was given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.probing.lbfgs import lbfgs
from plateaulens.probing.newton import CHUNK_BYTES, JITTER, newton

T = TypeVar("T")
SURE = 1e-4  # largest entry of a gradient where a fit counts as done


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Linear fits w . x + b.

    Attributes:
        weights: w; NaN where the labels do not vary over the rows that count.
        biases: b.
        gradient: largest entry of the gradient that was left, in the solver's coordinates.
    """

    weights: Float[Tensor, "problem label d"]
    biases: Float[Tensor, "problem label"]
    gradient: Float[Tensor, "problem label"]

    def __call__(self, x: Float[Tensor, "problem n d"]) -> Float[Tensor, "problem n label"]:
        """The values of w . x + b."""
        return torch.baddbmm(self.biases[:, None], x, self.weights.mT)

    @classmethod
    def of(cls, weights: Float[Tensor, "problem label d"], biases: Float[Tensor, "problem label"]) -> "LinearProbe":
        """A fit to start from."""
        return cls(weights, biases, torch.full_like(biases, torch.inf))

    @classmethod
    def joined(cls, fits: Sequence["LinearProbe"]) -> "LinearProbe":
        """The problems of several fits, one after another."""
        return cls(*(torch.cat(parts) for parts in zip(*(fit.parts for fit in fits), strict=True)))

    @classmethod
    def chosen(cls, fits: Sequence["LinearProbe"], which: Int[Tensor, " problem"]) -> "LinearProbe":
        """Of each problem one of several fits."""
        each = torch.arange(len(which), device=which.device)
        return cls(*(torch.stack(parts)[which, each] for parts in zip(*(fit.parts for fit in fits), strict=True)))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights, self.biases, self.gradient

    def __getitem__(self, problems: slice | Tensor) -> "LinearProbe":
        return LinearProbe(*(part[problems] for part in self.parts))


def least_squares(
    x: Float[Tensor, "problem n d"],
    y: Float[Tensor, "problem n label"],
    l2: float | Float[Tensor, " problem"] = 0.0,
    mask: Bool[Tensor, "problem n"] | None = None,
    bias: bool = True,
) -> LinearProbe:
    """The least mean (w . x + b - y)^2 / 2 + l2/2 |w|^2, in closed form and float64; of several, a short w.

    Without `bias`, b is 0 (the probes of arXiv 2410.22244, whose targets have several entries: a label each).
    """

    def solve(part: slice) -> LinearProbe:
        c = Columns.of(x[part].double(), None if mask is None else mask[part], centered=bias)
        own = y[part].double().where(c.share > 0, 0.0)
        gram = c.x.mT @ (c.share * c.x) + c.penalty(each(l2, x)[part])
        right = c.x.mT @ (c.share * own)
        w = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ right
        fit = c.back(w, (gram @ w - right).abs().amax(1))
        return LinearProbe(*(t.to(x) for t in fit.parts))

    return LinearProbe.joined(in_parts(solve, x))


@without_gradients
def logistic(
    x: Float[Tensor, "problem n d"],
    y: Float[Tensor, "problem n label"],
    l2: float | Float[Tensor, " problem"],
    mask: Bool[Tensor, "problem n"] | None = None,
    start: LinearProbe | None = None,
    tolerance: float = 1e-6,
    max_iter: int = 60,
) -> LinearProbe:
    r"""Binary logistic regressions, by Newton's method with backtracking.

    The least mean_n [log(1 + e^z) - y z] + l2/2 |w|^2 with z = w . x + b; scikit-learn's C is 1 / (l2 n). The
    Hessian \sum_n p (1 - p) x x' / n + l2 is summed in the precision of x and solved in float64. A fit ends with a
    small gradient, or where rounding does: when a step promises less than eps of its value; in float64 then, if that is
    not at a small gradient.

    Args:
        x: what is regressed on.
        y: 0 or 1.
        l2: the penalty; above 0, separable labels have a finite optimum.
        mask: rows that count; all by default.
        start: fits to start from, of a stronger penalty or an earlier checkpoint.
        tolerance: largest entry of the gradient to be left, for columns of variance 1.
        max_iter: steps to take.
    """

    def solve(given: Problems, start: LinearProbe | None) -> LinearProbe:
        c = Columns.of(given.x, given.mask)
        w = c.forth(start, given.y.shape[-1])
        return c.back(*newton(w, c.x, given.y, c.share, c.penalty(given.l2), tolerance, max_iter))

    given = Problems(x, y.to(x), each(l2, x), mask)
    return _sure(solve, given, start)


@without_gradients
def multinomial(
    x: Float[Tensor, "problem n d"],
    y: Int[Tensor, "problem n"],
    classes: int,
    l2: float | Float[Tensor, " problem"],
    mask: Bool[Tensor, "problem n"] | None = None,
    start: LinearProbe | None = None,
    tolerance: float = 1e-4,
    max_iter: int = 1000,
) -> LinearProbe:
    """Softmax regressions: the least mean -log p(y) + l2/2 |W|^2 with p = softmax(W x + b), a row of W a class.

    By L-BFGS. Arguments as in `logistic`; y are numbers below `classes`.
    """
    shape = (x.shape[-1] + 1, classes)

    def value(flat: Tensor, x: Tensor, y: Tensor, share: Tensor, penalty: Tensor) -> Float[Tensor, " problem"]:
        w = flat.unflatten(1, shape)
        return _mean_log_loss(x @ w, y, share) + (w * (penalty @ w)).sum((1, 2)) / 2

    def solve(given: Problems, start: LinearProbe | None) -> LinearProbe:
        own = given.y
        c = Columns.of(given.x, given.mask, bound=given.l2)
        there = c.share[..., 0] > 0
        varies = own.where(there, 0).amax(1) > own.where(there, classes).amin(1)
        flat = c.forth(start, classes).flatten(1)
        left = torch.full_like(flat[:, :1], torch.nan)
        data = tuple(t[varies] for t in (c.x, own, c.share, c.penalty(given.l2)))
        flat[varies], left[varies] = lbfgs(value, flat[varies], data, tolerance, max_iter)
        flat[~varies] = torch.nan
        w = flat.unflatten(1, shape)
        return c.back(w - w.mean(-1, keepdim=True), left.repeat(1, classes))  # what all share says nothing

    return _sure(solve, Problems(x, y, each(l2, x), mask), start)


@dataclass(frozen=True, eq=False)
class Problems:
    """What is to be fitted."""

    x: Float[Tensor, "problem n d"]
    y: Tensor
    l2: Float[Tensor, " problem"]
    mask: Bool[Tensor, "problem n"] | None

    def __getitem__(self, some: slice | Tensor) -> "Problems":
        return Problems(self.x[some], self.y[some], self.l2[some], None if self.mask is None else self.mask[some])

    def double(self) -> "Problems":
        """In float64."""
        y = self.y.double() if self.y.is_floating_point() else self.y
        return replace(self, x=self.x.double(), y=y, l2=self.l2.double())


def _sure(
    solve: Callable[[Problems, LinearProbe | None], LinearProbe], given: Problems, start: LinearProbe | None
) -> LinearProbe:
    """Fits; those that are left with a gradient that is not small are done again, in float64.

    In float32 weights may grow without use where x lies in fewer dimensions than it has.
    """

    def certain(part: slice) -> LinearProbe:
        fit = solve(given[part], None if start is None else start[part])
        if (some := (fit.gradient > SURE).any(1)).any():
            again = solve(given[part][some].double(), None)
            for own, better in zip(fit.parts, again.parts, strict=True):
                own[some] = better.to(own)
        return fit

    return LinearProbe.joined(in_parts(certain, given.x))


def in_parts(solve: Callable[[slice], T], x: Float[Tensor, "problem n d"], times: float = 1.0) -> list[T]:
    """Solve a few problems after another, so that what they make of x, `times` its size, stays small."""
    size = max(1, int(CHUNK_BYTES / max(1.0, x[:1].nbytes * times)))
    return [solve(slice(i, i + size)) for i in range(0, len(x), size)]


def _mean_log_loss(
    z: Float[Tensor, "problem n class"], y: Int[Tensor, "problem n"], share: Float[Tensor, "problem n 1"]
) -> Float[Tensor, " problem"]:
    return (share[..., 0] * (z.logsumexp(-1) - z.gather(-1, y[..., None])[..., 0])).sum(1)


# Coordinates.


@dataclass(frozen=True, eq=False)
class Columns:
    """(x - mean) A and a column of ones; `share` is 1 / n for the n rows that count, and 0 for the rest."""

    x: Float[Tensor, "problem n column"]
    share: Float[Tensor, "problem n 1"]
    mean: Float[Tensor, "problem 1 d"]
    a: Float[Tensor, "problem d d"]

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "problem n d"],
        mask: Bool[Tensor, "problem n"] | None,
        bound: float | Float[Tensor, " problem"] | None = None,
        centered: bool = True,
    ) -> "Columns":
        """Columns of variance 1, but for those that do not vary; with `bound` without correlations too.

        Then A makes S / 4 + l2, of which S is the covariance, the identity, l2 being `bound`: the Hessian at w = 0,
        and wherever else a bound to it (Boehning 1992).
        """
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        share = (there.to(x) / there.sum(1, keepdim=True).clamp(min=1))[..., None]
        x = x if mask is None else x.where(mask[..., None], 0.0)
        mean = share.mT @ x * centered
        mean = mean + share.mT @ (x - mean) * centered  # what rounding left: a column that does not vary has to be 0
        columns = F.pad(x - mean, (0, 1), value=float(centered))
        if mask is not None:
            columns *= mask[..., None]
        scale = (share.mT @ columns.square())[..., :-1].sqrt()
        noise = 8 * torch.finfo(x.dtype).eps * (mean.abs() + scale.amax(-1, keepdim=True))
        scale = scale.where(scale > noise, 1.0)
        columns[..., :-1] /= scale
        a = torch.diag_embed(1 / scale[:, 0])
        if bound is not None:
            covariance = (columns.mT @ (columns * share))[:, :-1, :-1].double()
            hessian = covariance / 4 + (each(bound, x)[:, None, None] * a.square()).double()
            hessian += torch.diag_embed(JITTER * torch.ones_like(hessian[:, 0]))
            turn = torch.linalg.inv(torch.linalg.cholesky_ex(hessian).L).mT.to(x)
            columns = torch.cat([columns[..., :-1] @ turn, columns[..., -1:]], -1)
            a = a @ turn
        return cls(columns, share, mean, a)

    def penalty(self, l2: float | Float[Tensor, " problem"]) -> Float[Tensor, "problem column column"]:
        """P of w' P w = l2 |A w|^2; the bias goes free."""
        return F.pad(each(l2, self.x)[:, None, None] * (self.a.mT @ self.a), (0, 1, 0, 1))

    def forth(self, start: LinearProbe | None, labels: int) -> Float[Tensor, "problem column label"]:
        """Coefficients of the columns for weights of x; 0 for want of them."""
        if start is None:
            return self.x.new_zeros(len(self.x), self.x.shape[-1], labels)
        weights, biases = start.weights.to(self.x).nan_to_num(), start.biases.to(self.x).nan_to_num()
        bias = biases[:, None] + self.mean @ weights.mT
        return torch.cat([torch.linalg.solve(self.a, weights.mT), bias], 1)

    def back(self, w: Float[Tensor, "problem column label"], gradient: Float[Tensor, "problem label"]) -> LinearProbe:
        """Weights of x for coefficients of the columns."""
        weights = (self.a @ w[:, :-1]).mT
        return LinearProbe(weights, w[:, -1] - (self.mean @ weights.mT)[:, 0], gradient)


def each(l2: float | Tensor, x: Float[Tensor, "problem n d"]) -> Float[Tensor, " problem"]:
    """A penalty for each problem."""
    return torch.as_tensor(l2).to(x).expand(len(x))
