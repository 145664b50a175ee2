"""Selection in activations: the rows of a full tensor that a call computes, and heads and positions of an edit."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from plateaulens.hooks import is_attention_map
from plateaulens.interventions.base import Call

HOOKS_WITH_HEADS = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result", "hook_rot_q", "hook_rot_k")


def rows_of_call(
    full: Shaped[Tensor, "..."], activation: Float[Tensor, "..."], call: Call, site: str
) -> Shaped[Tensor, "..."]:
    """The part of a tensor over whole sequences that belongs to the rows of this call.

    Cached decoding computes one row at a time; by absolute positions a map or patch is applied to the right row.

    Args:
        full: The tensor over whole sequences. It may lack the batch axis, and a map also the head axis; it is then
            the same for each example, or head.
        activation: The activation of this call at the hook.
        call: The position of the call.
        site: The hook name.

    Returns:
        The part, in the shape of `activation` unless `full` has another shape in other axes.

    Raises:
        ValueError: if `full` covers fewer positions than the model runs on.
    """
    if is_attention_map(site):
        query, key = activation.shape[-2:]
        if key > full.shape[-1]:
            raise ValueError(
                f"the map covers {full.shape[-1]} positions and the model runs on {key}; run it on batch.inputs"
            )
        part = full[..., key - query : key, :key]
        return part.expand(*activation.shape[: 4 - part.ndim], *part.shape)
    axis = 1 if full.ndim == activation.ndim else 0
    end = call.start + activation.shape[1]
    if end > full.shape[axis]:
        raise ValueError(
            f"the patch covers {full.shape[axis]} positions and the model runs on {end}; run it on batch.inputs"
        )
    part = full.narrow(axis, call.start, activation.shape[1])
    return part if axis else part.expand(len(activation), *part.shape)


def replace_at(
    old: Float[Tensor, "..."],
    new: Float[Tensor, "..."],
    call: Call,
    site: str,
    *,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Float[Tensor, "..."]:
    """`new` at the given heads and absolute positions (query positions of a map), `old` elsewhere.

    Returns:
        The combined activation; the object `old` itself if no position is among the rows of this call.

    Raises:
        ValueError: for a head that does not exist, or heads at a hook without a head axis.
    """
    if heads is None and positions is None:
        return new
    head_axis, position_axis = (1, 2) if is_attention_map(site) else (2, 1)
    mask = torch.ones((1,) * old.ndim, dtype=torch.bool, device=old.device)
    if heads is not None:
        if not is_attention_map(site) and site.rsplit(".", 1)[-1] not in HOOKS_WITH_HEADS:
            raise ValueError(f"{site} has no head axis; leave heads out, or edit attn.hook_z")
        n_heads = old.shape[head_axis]
        if not all(0 <= head < n_heads for head in heads):
            raise ValueError(f"{site} has heads 0..{n_heads - 1}, got {list(heads)}")
        mask = mask & _mask_along(torch.arange(n_heads, device=old.device), heads, head_axis, old.ndim)
    if positions is not None:
        start = old.shape[-1] - old.shape[-2] if is_attention_map(site) else call.start
        end = start + old.shape[position_axis]
        if not any(start <= position < end for position in positions):
            return old
        mask = mask & _mask_along(torch.arange(start, end, device=old.device), positions, position_axis, old.ndim)
    return torch.where(mask, new, old)


def _mask_along(labels: Tensor, chosen: Sequence[int], axis: int, ndim: int) -> Bool[Tensor, "..."]:
    """Which labels along an axis are chosen, in a shape that broadcasts over the other axes."""
    shape = [1] * ndim
    shape[axis] = len(labels)
    return torch.isin(labels, torch.tensor(list(chosen), device=labels.device)).view(shape)
