"""`Project`: remove directions from an activation, at positions that can differ between examples."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.hooks import device_of
from plateaulens.interventions.base import Call, Edit, Intervention
from plateaulens.protocols import HookedModel


@dataclass(frozen=True, eq=False, repr=False)
class Project(Intervention):
    r"""Move an activation along directions until each has its target: x <- x - factor \sum_v (u_v . x - t_v) u_v.

    With u = w / |w| and t = -b / |w| of a probe this is the projection onto the probe's decision hyperplane; with
    several directions it is a sum of such projections (feature ablation of arXiv 2505.03997). For orthonormal
    directions it is the projection onto the intersection of their hyperplanes, and with t = u . mean their
    mean-ablation.

    An offset is one position in each example, with its own directions. Changes of offsets at the same position add
    up; a direction of zeros changes nothing; positions beyond the end of the sequence are skipped.

    Args:
        site: Hook name, of activations [batch pos d_model].
        positions: Absolute positions of each example, or one row for all examples; -1 where an example has fewer.
        basis: u, the directions of each offset.
        target: t, the values of u . x after the projection with `factor=1`.
        factor: Fraction of the way to the target.

    Raises:
        ValueError: for shapes that do not fit each other; when applied, for another number of examples, or an
            activation of another shape.
    """

    site: str
    positions: Int[Tensor, "batch offset"]
    basis: Float[Tensor, "offset k d_model"]
    target: Float[Tensor, "offset k"]
    factor: float = 1.0

    def __post_init__(self) -> None:
        shapes = [list(x.shape) for x in (self.positions, self.basis, self.target)]
        if not (self.basis.ndim == 3 and shapes[2] == shapes[1][:2] and shapes[0][1:] == shapes[1][:1]):
            raise ValueError(
                "positions [batch offset], basis [offset k d_model] and target [offset k] do not fit each other: "
                f"got {', '.join(map(str, shapes))}"
            )

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        device = device_of(model)
        positions, basis, target = (x.to(device) for x in (self.positions, self.basis, self.target))
        absolute = set(self.positions.unique().tolist()) - {-1}

        def edit(x: Tensor, call: Call) -> Tensor:
            if x.ndim != 3 or x.shape[-1] != basis.shape[-1]:
                raise ValueError(
                    f"{self!r} needs activations [batch pos {basis.shape[-1]}], and {self.site} has shape "
                    f"{list(x.shape)}; choose another hook"
                )
            if len(positions) not in (1, len(x)):
                raise ValueError(f"{self!r} has positions of {len(positions)} examples, and the model runs on {len(x)}")
            if not any(call.start <= position < call.start + x.shape[1] for position in absolute):
                return x
            relative = positions.expand(len(x), -1) - call.start
            inside = (relative >= 0) & (relative < x.shape[1])
            rows = relative.clamp(0, x.shape[1] - 1)[..., None].expand(-1, -1, x.shape[-1])
            u = basis.to(x)
            excess = torch.einsum("bom,okm->bok", x.gather(1, rows), u) - target.to(x)
            change = self.factor * torch.einsum("bok,okm->bom", excess, u)
            return x.scatter_add(1, rows, -change.where(inside[..., None], 0.0))

        return {self.site: edit}
