"""Interventions on any activation: ablate, patch from another run, steer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.hooks import device_of, match_hooks
from plateaulens.interventions.attention import batch_mean
from plateaulens.interventions.base import Call, Edit, Intervention
from plateaulens.interventions.positions import only, rows


class _AtSite(Intervention):
    """An edit of one hook, or of all that a glob matches, at some heads and absolute positions (queries of maps)."""

    site: str
    heads: Sequence[int] | None
    positions: Sequence[int] | None

    def __post_init__(self) -> None:
        for name in ("heads", "positions"):
            chosen = getattr(self, name)
            if chosen is not None:
                object.__setattr__(self, name, tuple(int(i) for i in chosen))
                if not chosen or min(chosen) < 0:
                    raise ValueError(f"{name} are indices from 0 on, at least one; got {list(chosen)}")

    def edits(self, model: Any) -> dict[str, Edit]:
        return {site: self._edit(site) for site in match_hooks(model, [self.site])}

    def _edit(self, site: str) -> Edit:
        def edit(tensor: Tensor, call: Call) -> Tensor:
            return only(self._new(tensor), tensor, call, site, self.heads, self.positions)

        return edit

    def _new(self, tensor: Tensor) -> Tensor:
        """What the chosen heads and positions become."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(_AtSite):
    """Replace an activation by zeros, by its mean over the batch, or by that of another example.

    Args:
        site: a hook name, or a glob like "blocks.*.hook_mlp_out".
        mode: "zero", "mean" (position by position) or "resample": each example gets the activation of
            another one of the batch, the same one at every site, layer and decoding step.
        heads: which heads, at sites that have them; all by default.
        positions: which absolute positions; all by default.
        seed: of the resampling.

    Raises:
        ValueError: for an unknown mode; when applied, for a batch of one with "mean" or "resample".
    """

    site: str
    mode: str = "mean"
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        look_up("mode", self.mode, dict.fromkeys(("zero", "mean", "resample")))

    def _new(self, tensor: Tensor) -> Tensor:
        if self.mode == "zero":
            return torch.zeros_like(tensor)
        if self.mode == "mean":
            return batch_mean(tensor, self)
        if len(tensor) < 2:
            raise ValueError(f"{self!r} cannot act on a batch of one: there is no other example")
        order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(self.seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle through all examples: nobody keeps its own
        return tensor[other.to(tensor.device)]


@dataclass(frozen=True, eq=False, repr=False)
class Patch(_AtSite):
    """Put in an activation from elsewhere: another model, another step, other prompts.

        clean = trace(model, batch)
        with intervene(model, Patch("blocks.0.attn.hook_z", clean.cache["blocks.0.attn.hook_z"], heads=[1])):
            measure(model, corrupted, metrics)

    Args:
        site: a hook name.
        value: what the site becomes, over whole sequences: the model's shape there, or that without the
            batch axis. The prompts are not compared: patching between different ones is the point.
        heads: which heads, at sites that have them; all by default.
        positions: which absolute positions (query positions of attention maps); all by default.
    """

    site: str
    value: Float[Tensor, "..."]
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None

    def edits(self, model: Any) -> dict[str, Edit]:
        value = self.value.to(device_of(model))

        def edit(tensor: Tensor, call: Call) -> Tensor:
            new = rows(value, tensor, call, self.site).to(tensor.dtype)
            # A wrong shape is for `intervene` to refuse, before heads and positions could broadcast it.
            if new.shape != tensor.shape:
                return new
            return only(new, tensor, call, self.site, self.heads, self.positions)

        return {self.site: edit}


@dataclass(frozen=True, eq=False, repr=False)
class Steer(_AtSite):
    """Add `by` times a vector to an activation.

    Args:
        site: a hook name or a glob, with positions on its second axis.
        vector: of the site's last axis (or last two, at sites with heads).
        factor: the factor.
        heads: which heads, at sites that have them; all by default.
        positions: which absolute positions; all by default.

    Raises:
        ValueError: when applied, for a vector of another size than the site's.
    """

    site: str
    vector: Float[Tensor, "..."]
    factor: float = 1.0
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None

    def _new(self, tensor: Tensor) -> Tensor:
        size = self.vector.shape
        if tensor.shape[-len(size) :] != size or len(size) > tensor.ndim - 2:
            raise ValueError(f"the vector of {self!r} does not fit {self.site}, which is {list(tensor.shape)}")
        return tensor + self.factor * self.vector.to(tensor)
