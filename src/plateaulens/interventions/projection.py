"""`Project`: take directions out of an activation, at positions of each example's own."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.hooks import device_of
from plateaulens.interventions.base import Call, Edit, Intervention


@dataclass(frozen=True, eq=False, repr=False)
class Project(Intervention):
    r"""Move an activation along directions until each has its target: x <- x - `by` \sum_v (u_v . x - t_v) u_v.

    With u = w / |w| and t = -b / |w| of a probe this is the projection onto the probe's decision hyperplane, and with
    several directions a sum of such projections (feature ablation of arXiv 2505.03997). Orthonormal directions make
    it the projection onto the intersection of their hyperplanes; with t = u . mean it is their mean-ablation.

    An offset is one place in each example, with directions of its own. Offsets that share a place add up; a
    direction of zeros does nothing; positions that the model does not reach are left.

    Args:
        site: a hook name, of states [batch pos d_model].
        positions: absolute positions, example by example, or one row for all; -1 where there is no such place.
        basis: u, the directions of each offset.
        target: t, what u . x becomes with `by` = 1.
        factor: how far to go.

    Raises:
        ValueError: for shapes that do not belong together; when applied, for another number of examples, or a site
            of another shape.
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
                "positions [batch offset], basis [offset k d_model] and target [offset k] do not belong together: "
                f"got {', '.join(map(str, shapes))}"
            )

    def edits(self, model: Any) -> dict[str, Edit]:
        device = device_of(model)
        positions, basis, target = (x.to(device) for x in (self.positions, self.basis, self.target))
        places = set(self.positions.unique().tolist()) - {-1}

        def edit(x: Tensor, call: Call) -> Tensor:
            if x.ndim != 3 or x.shape[-1] != basis.shape[-1]:
                raise ValueError(
                    f"the directions have {basis.shape[-1]} entries and {self.site} is {list(x.shape)}, "
                    "not [batch pos d_model]; take another site"
                )
            if len(positions) not in (1, len(x)):
                raise ValueError(
                    f"{self!r} has the positions of {len(positions)} examples, and the model runs on {len(x)}"
                )
            if not any(call.start <= place < call.start + x.shape[1] for place in places):
                return x  # nothing of this call
            here = positions.expand(len(x), -1) - call.start
            inside = (here >= 0) & (here < x.shape[1])
            rows = here.clamp(0, x.shape[1] - 1)[..., None].expand(-1, -1, x.shape[-1])
            u = basis.to(x)
            excess = torch.einsum("bom,okm->bok", x.gather(1, rows), u) - target.to(x)
            change = self.factor * torch.einsum("bok,okm->bom", excess, u)
            return x.scatter_add(1, rows, -change.where(inside[..., None], 0.0))

        return {self.site: edit}
