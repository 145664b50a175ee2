"""`unhooked`: the Hugging Face model inside a bridge, without the hooks around it.

A bridge takes Hugging Face's modules apart so that a hook fits between any two operations, and pays for it at every
call, read or not. Without them the same tensors go through Hugging Face's own code, to the same numbers, and
sooner. Only where nothing could tell the difference: no hook of anybody's, and equal weights.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from plateaulens.hooks import active_interventions, has_user_hooks, is_native_bridge

PADDING = 256  # tokens: about what one more pass costs
TOKENS = 2**14  # in one pass, for the sake of memory
ROOM = 16  # tokens
SPLIT = ("q", "k", "v")  # the only weights that a bridge has copies of


class Unhooked:
    """A Hugging Face model with the face of a hooked one, as far as generating looks at it.

    Args:
        original_model: it, its weights shared with the bridge.
        cfg: the bridge's.
        points: sites that can be read -> the module there, and whether its input is meant or its output.
    """

    def __init__(self, original_model: nn.Module, cfg: Any, points: dict[str, tuple[nn.Module, bool]]) -> None:
        self.original_model, self.cfg, self.hook_dict = original_model, cfg, dict[str, Any]()
        self._points = points
        self._reading: list[tuple[list[Tensor], Callable[..., None]]] = []

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[str, Callable[..., None]]]) -> Iterator[None]:
        """Readers of the last position at each of the sites, as long as the context lasts."""
        handles: list[Any] = []
        try:
            for name, read in fwd_hooks:
                rows: list[Tensor] = []
                handles.append(_attach(*self._points[name], rows))
                self._reading.append((rows, read))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._reading.clear()

    def __call__(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> Float[Tensor, "batch kept d_vocab"]:
        """The logits; prompts behind a mask, of which nothing is remembered yet, go in parts, to save padding."""
        cache = options.get("past_key_values")
        if options.get("attention_mask") is None or cache is None or cache.get_seq_length():
            logits, back = self.original_model(tokens, **options).logits, None
        else:
            logits, back = self._in_parts(tokens, **options)
        for rows, read in self._reading:
            read(rows[0] if back is None else torch.cat(rows)[back], None)
            rows.clear()
        return logits

    def _in_parts(
        self, tokens: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The last logits of left-padded prompts, and where each of them went.

        What is remembered of all goes into the one cache.
        """
        logits, caches = [], []
        lengths = attention_mask.sum(1).tolist()
        parts = batch_by_length(lengths, padding=PADDING, tokens=TOKENS)
        for part in parts:
            kept = -max(lengths[i] for i in part)
            own = type(past_key_values)()
            given = {"attention_mask": attention_mask[part, kept:], "position_ids": position_ids[part, kept:]}
            out = self.original_model(tokens[part, kept:], past_key_values=own, **given, **options)
            logits.append(out.logits[:, -1:])
            caches.append(own)
        back = torch.tensor(sum(parts, [])).argsort().to(tokens.device)
        for layers in zip(*(own.layers for own in caches), strict=True):
            keys, values = ([getattr(layer, name) for layer in layers] for name in ("keys", "values"))
            past_key_values.layers.append(
                _preallocated()(*(_aligned(x, parts, tokens.shape[1]) for x in (keys, values)))
            )
        return torch.cat(logits)[back], back


def batch_by_length(
    lengths: Sequence[int],
    *,
    rows: float | int = math.inf,
    padding: float | int = math.inf,
    tokens: float | int = math.inf,
) -> list[list[int]]:
    """Which prompts go through together, by length: at most so many, with so much padding, and tokens with it."""
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        own = [*parts[-1], i] if parts else []
        wide = len(own) * lengths[i]
        if not own or len(own) > rows or wide > tokens or wide - sum(lengths[j] for j in own) > padding:
            parts.append([i])
        else:
            parts[-1].append(i)
    return parts


@cache
def _preallocated() -> Any:
    """The class of a layer's keys and values with room for more; Hugging Face's own copies them all for every token."""
    from transformers.cache_utils import DynamicLayer

    class PreallocatedLayer(DynamicLayer):
        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.lazy_initialization(keys, values)
            self.room, self.length = [keys, values], keys.shape[2] - ROOM
            self.keys, self.values = (x[:, :, : self.length] for x in self.room)

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            start, self.length = self.length, self.length + key_states.shape[2]
            if self.length > self.room[0].shape[2]:
                self.room = [F.pad(x, (0, 0, 0, x.shape[2])) for x in self.room]
            for room, new in zip(self.room, (key_states, value_states), strict=True):
                room[:, :, start : self.length] = new
            self.keys, self.values = (x[:, :, : self.length] for x in self.room)
            return self.keys, self.values

    return PreallocatedLayer


def _aligned(
    tensors: Sequence[Float[Tensor, "_ head _ d_head"]], parts: Sequence[Sequence[int]], width: int
) -> Float[Tensor, "batch head room d_head"]:
    """The rows of all parts in one tensor, the end of each at `width`, with `ROOM` behind it."""
    _, heads, _, d_head = tensors[0].shape
    joined = tensors[0].new_zeros(sum(map(len, parts)), heads, width + ROOM, d_head)
    for tensor, part in zip(tensors, parts, strict=True):
        joined[part, :, width - tensor.shape[2] : width] = tensor
    return joined


def unhooked(model: Any, sites: Sequence[str] = ()) -> Unhooked | None:
    """The Hugging Face model of a bridge, if `sites` can be read there, else None.

    They can at the residual stream before and after each block, and before the unembedding. None also under an
    intervention or any hook of the caller's, and as soon as a weight of the bridge, which has copies of fused
    ones, differs from the original.
    """
    inner = getattr(model, "original_model", None)
    if inner is None or is_native_bridge(model) or active_interventions(model) or has_user_hooks(model):
        return None
    modules = {*model.modules(), *inner.modules()}
    if any(map(_changed, modules)):
        return None
    bare: dict[nn.Module, nn.Module] = {}
    plain = _without_hooks(inner, bare)
    points: dict[nn.Module, tuple[nn.Module, bool]] = {}
    for block in getattr(model, "blocks", ()):
        points |= {block.hook_in: (bare[block], True), block.hook_out: (bare[block], False)} if block in bare else {}
    if (unembed := getattr(model, "unembed", None)) in bare:
        points[unembed.hook_in] = (bare[unembed], True)
    found = {name: points.get(model.hook_dict[name]) for name in sites}
    if None in found.values() or not _same_weights(modules, plain):
        return None
    return Unhooked(plain, model.cfg, {name: point for name, point in found.items() if point is not None})


def _attach(module: nn.Module, is_input: bool, rows: list[Tensor]) -> Any:
    """Add the last position of the module's first input, or its first output, to `rows` at every call."""
    if is_input:

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows.append((args[0] if args else next(iter(kwargs.values())))[:, -1:])

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        rows.append((output if isinstance(output, Tensor) else output[0])[:, -1:])

    return module.register_forward_hook(after)


def _changed(module: nn.Module) -> bool:
    """Whether somebody, not TransformerLens itself, put a hook of torch's on a module, or another `forward`."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "forward" in vars(module) or any(not str(hook.__module__).startswith("transformer_lens.") for hook in hooks)


def _without_hooks(module: nn.Module, bare: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with the originals in place of the bridge's components, all the way down; `bare` has what became what.

    Copies are shallow: they have the very tensors of the module.
    """
    if module in bare:
        return bare[module]
    original = module._modules.get("_original_component")
    if original is not None:
        bare[module] = _without_hooks(original, bare)
        return bare[module]
    children = {name: None if child is None else _without_hooks(child, bare) for name, child in module._modules.items()}
    if any(children[name] is not child for name, child in module._modules.items()):
        bare[module] = copy.copy(module)
        bare[module]._modules = children
    return bare.setdefault(module, module)


def _same_weights(modules: set[nn.Module], plain: nn.Module) -> bool:
    """Whether every parameter of a bridge is one of the plain model's, or still equal to its part of one."""
    known = {id(p) for module in plain.modules() for p in module._parameters.values()}
    for attention in modules:
        split, original = vars(attention).get("split_qkv_matrix"), attention._modules.get("_original_component")
        if not callable(split) or original is None:
            continue
        with torch.device("meta"):  # new Linear layers draw weights, which nobody needs
            parts = split(original)
        for name, part in zip(SPLIT, parts, strict=True):
            ours = getattr(attention, name).original_component._parameters
            if not all(_equal(ours[key], part._parameters.get(key)) for key in ours):
                return False
            known |= {id(p) for p in ours.values()}
    return all(id(p) in known for module in modules for p in module._parameters.values())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.device == b.device and torch.equal(a, b))
