"""Where in an activation an edit acts: which rows of a full tensor a call computes, which heads, which positions."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from plateaulens.hooks import is_attention_map
from plateaulens.interventions.base import Call

BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result", "hook_rot_q", "hook_rot_k")  # [batch pos head ...]


def rows(full: Tensor, tensor: Tensor, call: Call, site: str) -> Tensor:
    """The part of `full`, which covers whole sequences, that belongs to the rows of this call.

    Cached decoding computes one row at a time; absolute positions make a map or a patch act on the right one.
    `full` may lack the batch axis, and a map the head axis: it then holds for each.

    Raises:
        ValueError: when `full` covers fewer positions than the model runs on.
    """
    if is_attention_map(site):
        query, key = tensor.shape[-2:]
        if key > full.shape[-1]:
            raise ValueError(
                f"the map covers {full.shape[-1]} positions and the model runs on {key}; run it on batch.inputs"
            )
        part = full[..., key - query : key, :key]
        return part.expand(*tensor.shape[: 4 - part.ndim], *part.shape)
    axis = 1 if full.ndim == tensor.ndim else 0
    end = call.start + tensor.shape[1]
    if end > full.shape[axis]:
        raise ValueError(
            f"the patch covers {full.shape[axis]} positions and the model runs on {end}; run it on batch.inputs"
        )
    part = full.narrow(axis, call.start, tensor.shape[1])
    return part if axis else part.expand(len(tensor), *part.shape)


def only(
    new: Tensor, old: Tensor, call: Call, site: str, heads: Sequence[int] | None, positions: Sequence[int] | None
) -> Tensor:
    """`new` at the given heads and absolute positions (query positions of a map), `old` everywhere else.

    Raises:
        ValueError: for a head that is not there, or heads at a site that has none.
    """
    if heads is None and positions is None:
        return new
    head, pos = (1, 2) if is_attention_map(site) else (2, 1)
    chosen = torch.ones((1,) * old.ndim, dtype=torch.bool, device=old.device)
    if heads is not None:
        if not is_attention_map(site) and site.rsplit(".", 1)[-1] not in BY_HEAD:
            raise ValueError(f"{site} has no head axis; leave heads out, or edit attn.hook_z")
        if not all(0 <= h < old.shape[head] for h in heads):
            raise ValueError(f"{site} has heads 0..{old.shape[head] - 1}, got {list(heads)}")
        chosen = chosen & _along(torch.arange(old.shape[head], device=old.device), heads, head, old.ndim)
    if positions is not None:
        start = old.shape[-1] - old.shape[-2] if is_attention_map(site) else call.start
        if not any(start <= position < start + old.shape[pos] for position in positions):
            return old  # nothing of this call, and `intervene` counts it as such
        here = torch.arange(start, start + old.shape[pos], device=old.device)
        chosen = chosen & _along(here, positions, pos, old.ndim)
    return torch.where(chosen, new, old)


def _along(labels: Tensor, wanted: Sequence[int], axis: int, ndim: int) -> Bool[Tensor, "..."]:
    shape = [1] * ndim
    shape[axis] = len(labels)
    return torch.isin(labels, torch.tensor(list(wanted), device=labels.device)).view(shape)
