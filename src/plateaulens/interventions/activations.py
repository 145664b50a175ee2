"""Interventions on the activation at any hook: `Ablate`, `Patch`, `Steer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from plateaulens._registry import check_choices
from plateaulens.hooks import device_of, match_hooks
from plateaulens.interventions.attention import batch_mean
from plateaulens.interventions.base import Call, Edit, Intervention
from plateaulens.interventions.positions import replace_at, rows_of_call
from plateaulens.protocols import HookedModel


class _AtSite(Intervention):
    """An edit at one hook, or at all that a glob matches, optionally at some heads and absolute positions only."""

    site: str
    heads: Sequence[int] | None
    positions: Sequence[int] | None

    def __post_init__(self) -> None:
        for name in ("heads", "positions"):
            indices = getattr(self, name)
            if indices is not None:
                object.__setattr__(self, name, tuple(int(i) for i in indices))
                if not indices or min(indices) < 0:
                    raise ValueError(f"{name} must be one or more indices from 0, got {list(indices)}")

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        return {site: self._edit(site) for site in match_hooks(model, [self.site])}

    def _edit(self, site: str) -> Edit:
        def edit(tensor: Tensor, call: Call) -> Tensor:
            new = self._new(tensor)
            return replace_at(tensor, new, call, site, heads=self.heads, positions=self.positions)

        return edit

    def _new(self, tensor: Tensor) -> Tensor:
        """The new activation, from which the chosen heads and positions are taken."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(_AtSite):
    """Replace an activation by zeros, by its mean over the batch, or by the activation of another example.

    Args:
        site: Hook name, or a glob like "blocks.*.hook_mlp_out".
        mode: "zero", "mean" (over the batch, for each position) or "resample": each example gets the activation of
            another example of the batch, the same one at every hook and decoding step.
        heads: Heads to ablate, at hooks with a head axis; None for all.
        positions: Absolute positions to ablate (query positions of attention maps); None for all.
        seed: Seed of the resampling.

    Raises:
        ValueError: for an unknown mode; when applied, for a batch of one with "mean" or "resample".
    """

    site: str
    mode: Literal["zero", "mean", "resample"] = "mean"
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)

    def _new(self, tensor: Tensor) -> Tensor:
        if self.mode == "zero":
            return torch.zeros_like(tensor)
        if self.mode == "mean":
            return batch_mean(tensor, self)
        if len(tensor) < 2:
            raise ValueError(f"{self!r} needs another example to resample from, and got a batch of one")
        order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(self.seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle through all examples: none keeps its own activation
        return tensor[other.to(tensor.device)]


@dataclass(frozen=True, eq=False, repr=False)
class Patch(_AtSite):
    """Replace an activation by a given one: of another model, another step or other prompts.

        clean = trace(model, batch)
        with intervene(model, Patch("blocks.0.attn.hook_z", clean.cache["blocks.0.attn.hook_z"], heads=[1])):
            measure(model, corrupted, metrics)

    Args:
        site: Hook name.
        value: New activation over whole sequences, in the model's shape at this hook, with or without the batch axis.
            It may come from other prompts than the model runs on.
        heads: Heads to patch, at hooks with a head axis; None for all.
        positions: Absolute positions to patch (query positions of attention maps); None for all.

    Raises:
        ValueError: when applied, for a value of another shape or of fewer positions than the model runs on.
    """

    site: str
    value: Float[Tensor, "..."]
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        value = self.value.to(device_of(model))

        def edit(tensor: Tensor, call: Call) -> Tensor:
            new = rows_of_call(value, tensor, call, self.site).to(tensor.dtype)
            # `intervene` refuses a wrong shape; selecting heads and positions first could broadcast it.
            if new.shape != tensor.shape:
                return new
            return replace_at(tensor, new, call, self.site, heads=self.heads, positions=self.positions)

        return {self.site: edit}


@dataclass(frozen=True, eq=False, repr=False)
class Steer(_AtSite):
    """Add `factor` times a vector to an activation: x <- x + factor v.

    Args:
        site: Hook name or a glob, of activations [batch pos ...].
        vector: v, of the shape of the activation's last axis (or last two, at hooks with a head axis).
        factor: Factor of the vector.
        heads: Heads to steer, at hooks with a head axis; None for all.
        positions: Absolute positions to steer; None for all.

    Raises:
        ValueError: when applied, for a vector of another shape than the activation's.
    """

    site: str
    vector: Float[Tensor, "..."]
    factor: float = 1.0
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None

    def _new(self, tensor: Tensor) -> Tensor:
        size = self.vector.shape
        if tensor.shape[-len(size) :] != size or len(size) > tensor.ndim - 2:
            raise ValueError(f"the vector of {self!r} does not fit {self.site}, which has shape {list(tensor.shape)}")
        return tensor + self.factor * self.vector.to(tensor)
