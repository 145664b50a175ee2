"""Fits of many probes of one hidden layer at once.

    fit = hidden_layer(x, y, loss, l2=1 / (100 * n), width=32)      # x [problem n d], y [problem n label]
    z = fit(x)                                                      # [problem n label]

As in `solvers`, weights, biases and penalties are those of x as it was given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.probing.lbfgs import lbfgs
from plateaulens.probing.solvers import Columns, LinearProbe, each, in_parts


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """Networks U relu(W x + b) + c.

    Attributes:
        inner: W and b, of as many units a network as any of them has.
        outer: U, 0 for the units that an output does not read, and c, NaN where the label does not vary over the rows
            that count.
    """

    inner: LinearProbe
    outer: LinearProbe

    def __call__(self, x: Float[Tensor, "problem n d"]) -> Float[Tensor, "problem n label"]:
        """The outputs."""
        times = self.inner.weights.shape[1] / x.shape[-1]
        return torch.cat(in_parts(lambda part: self.outer[part](self.inner[part](x[part]).relu_()), x, times))

    def __getitem__(self, problems: slice | Tensor) -> "MLPProbe":
        return MLPProbe(self.inner[problems], self.outer[problems])

    @classmethod
    def joined(cls, fits: Sequence["MLPProbe"]) -> "MLPProbe":
        """The problems of several fits, one after another."""
        width = max(fit.inner.weights.shape[1] for fit in fits)
        wide = [fit._padded(width - fit.inner.weights.shape[1]) for fit in fits]
        return cls(LinearProbe.joined([fit.inner for fit in wide]), LinearProbe.joined([fit.outer for fit in wide]))

    @classmethod
    def chosen(cls, fits: Sequence["MLPProbe"], which: Int[Tensor, " problem"]) -> "MLPProbe":
        """Of each problem one of several fits."""
        return cls(
            LinearProbe.chosen([fit.inner for fit in fits], which),
            LinearProbe.chosen([fit.outer for fit in fits], which),
        )

    def _padded(self, units: int) -> "MLPProbe":
        """With so many units more, which do nothing."""
        weights, biases, gradient = self.inner.parts
        inner = LinearProbe(F.pad(weights, (0, 0, 0, units)), F.pad(biases, (0, units)), F.pad(gradient, (0, units)))
        return MLPProbe(inner, LinearProbe(F.pad(self.outer.weights, (0, units)), *self.outer.parts[1:]))


@without_gradients
def hidden_layer(
    x: Float[Tensor, "problem n d"],
    y: Float[Tensor, "problem n label"],
    loss: Callable[[Tensor, Tensor], Tensor],
    l2: float | Float[Tensor, " problem"],
    width: int = 32,
    mask: Bool[Tensor, "problem n"] | None = None,
    together: bool = True,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_iter: int = 500,
) -> MLPProbe:
    """Networks of one hidden layer of `width` rectified units: the least mean loss + l2/2 |weights|^2, by L-BFGS.

    What is found is close to a local optimum, and may lie on a kink of it, where no gradient is small. Every network
    starts from the same Gaussian weights, which `seed` draws. The way there magnifies rounding and is therefore gone
    in float64.

    Args:
        x: what is regressed on.
        y: what `loss` takes.
        loss: outputs and y [network n label] -> [network n].
        l2: the penalty on U and W; biases go free.
        width: hidden units of a network.
        mask: rows that count; all by default.
        together: one network for all labels of a problem; otherwise one for each, of which `loss` sees one label.
        seed: of the start.
        tolerance: largest entry of the gradient to be left, for columns of variance up to 4.
        max_iter: steps to take.
    """
    d, labels, rng = x.shape[-1] + 1, y.shape[-1], torch.Generator().manual_seed(seed)
    outputs, copies = (labels, 1) if together else (1, labels)
    first = torch.randn(d, width, generator=rng) / (2 * d) ** 0.5
    second = torch.cat([torch.randn(width, outputs, generator=rng) / width**0.5, torch.zeros(1, outputs)])
    start = torch.cat([first.flatten(), second.flatten()]).to(x.device, torch.float64)

    def unpacked(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W and b, U, c."""
        u = flat[:, d * width :].unflatten(1, (width + 1, outputs))
        return flat[:, : d * width].unflatten(1, (d, width)), u[:, :-1], u[:, -1]

    def value(flat: Tensor, x: Tensor, y: Tensor, share: Tensor, penalty: Tensor, l2s: Tensor) -> Tensor:
        w, u, c = unpacked(flat)
        squares = (w * (penalty @ w)).sum((1, 2)) + l2s * u.square().sum((1, 2))
        return (share[..., 0] * loss(torch.baddbmm(c[:, None], (x @ w).relu(), u), y)).sum(1) + squares / 2

    def solve(part: slice) -> MLPProbe:
        l2s, own = each(l2, x)[part].double(), y[part].double()
        columns = Columns.of(x[part].double(), None if mask is None else mask[part], bound=l2s)
        there = columns.share > 0
        own = own.where(there, 0.0)  # whatever a row that does not count has: 0 times NaN is NaN
        varies = own.where(there, -torch.inf).amax(1) > own.where(there, torch.inf).amin(1)
        nets = einops.rearrange(own, "p n (copy label) -> (p copy) n label", copy=copies)
        seen, *rest = (t.repeat_interleave(copies, 0) for t in (columns.x, columns.share, columns.penalty(l2s), l2s))
        flat, left = lbfgs(value, start.repeat(len(nets), 1), (seen, nets, *rest), tolerance, max_iter)
        w, u, c = unpacked(flat)
        left, w = left.view(-1, copies), einops.rearrange(w, "(p copy) d unit -> p d (copy unit)", copy=copies)
        apart = torch.einsum("pcul,ce->pcleu", u.unflatten(0, (-1, copies)), torch.eye(copies).to(u))
        outer = einops.rearrange(apart, "p copy label each unit -> p (copy label) (each unit)")
        c = c.reshape(-1, labels).where(varies.any(1, keepdim=True) if together else varies, torch.nan)
        layers = (
            columns.back(w, left.repeat_interleave(width, 1)),
            LinearProbe(outer, c, left.repeat_interleave(outputs, 1)),
        )
        return MLPProbe(*(LinearProbe(*(t.to(x) for t in layer.parts)) for layer in layers))

    return MLPProbe.joined(in_parts(solve, x, copies * max(1.0, width / d)))
