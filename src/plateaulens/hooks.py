"""Any hooked model, seen one way: `Transformer`, 3.9's `HookedTransformer`, bridges of TransformerLens 4.

The one place that knows how these differ: which sites exist, which edits cannot act, which hooks are
our own, and where the layers and the vocabulary are. `whole` sees to it that Ctrl-C leaves no hook behind.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from plateaulens._registry import unknown

_OWN: "WeakKeyDictionary[nn.Module, list[tuple[Any, int]]]" = WeakKeyDictionary()
# TransformerLens refuses hooks on these until a flag of the config is set.
CONFIG_FLAGS = {
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_result": "use_attn_result",
}
PATTERN_HOOKS = "blocks.*.attn.hook_pattern"
MAPS = ("hook_pattern", "hook_attn_scores")  # [batch head query key]


def hook_names(model: Any) -> set[str]:
    """Every hook name that the model can fire as it is configured, aliases included.

    Raises:
        TypeError: when the model has no TransformerLens hooks.
    """
    if not hasattr(model, "hook_dict"):
        raise TypeError(
            f"{type(model).__name__} has no TransformerLens hooks; wrap it in a TransformerBridge to trace or intervene"
        )
    off = tuple(name for name, flag in CONFIG_FLAGS.items() if not getattr(model.cfg, flag, False))
    return {name for name in model.hook_dict if not name.endswith(off)}


def match_hooks(model: Any, globs: list[str]) -> list[str]:
    """The sites that the names or globs stand for; a name that matches nothing raises with the nearest."""
    known = hook_names(model)
    found: dict[str, None] = {}
    for glob in globs:
        hits = [glob] if glob in known else sorted(name for name in known if fnmatchcase(name, glob))
        if not hits:
            raise unknown("hook", glob, known)
        found.update(dict.fromkeys(hits))
    return list(found)


def pattern_hook(layer: int) -> str:
    """The hook of a layer's attention maps."""
    return PATTERN_HOOKS.replace("*", str(layer))


def is_attention_map(site: str) -> bool:
    """Whether a site holds attention maps."""
    return site.rsplit(".", 1)[-1] in MAPS


def n_layers(model: Any) -> int:
    """Layers of the model."""
    return int(model.cfg.n_layers)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def is_native_bridge(model: Any) -> bool:
    """Whether the model is a native bridge, where some edits do nothing."""
    return type(getattr(model, "original_model", None)).__name__ == "NativeModel"


def check_writable(model: Any, site: str) -> None:
    """Raise unless an edit at `site` really acts on this model.

    Raises:
        ValueError: for an unknown site, one that waits for a flag of the config, and sites of bridges
            whose edits are discarded or reach only half of what the name says.
    """
    name = site.rsplit(".", 1)[-1] if site != "rotary_emb.hook_in" else site
    if name in CONFIG_FLAGS and site in model.hook_dict and not getattr(model.cfg, CONFIG_FLAGS[name], False):
        raise ValueError(
            f"{site} is computed only with cfg.{CONFIG_FLAGS[name]}; model.set_{CONFIG_FLAGS[name]}(True) turns it on"
        )
    match_hooks(model, [site])
    if not hasattr(model, "original_model"):
        return
    dead = {
        "hook_resid_mid": "it reaches the MLP and misses the skip",
        "rotary_emb.hook_in": "only its type is looked at",
    }
    if is_native_bridge(model):
        dead["hook_attn_scores"] = "the scores are only shown, edit hook_pattern"
        if not hasattr(native_attention(), "accepts_pattern_fn"):
            dead["hook_pattern"] = "TransformerLens 3.9 discards it"
    if name in dead:
        raise ValueError(f"an edit of {site} cannot act on this bridge ({dead[name]}); on pl.Transformer it does")


def native_attention() -> Any:
    """TransformerLens's native attention class."""
    from transformer_lens.model_bridge.sources.native import NativeAttention

    return NativeAttention


@contextmanager
def attach_interventions(model: nn.Module, values: list[Any], hooks: list[tuple[str, Any]]) -> Iterator[None]:
    """Attach hooks that know absolute positions, and remember them as ours while they are on."""
    stack = _OWN.setdefault(model, [])
    entries = [(value, 0) for value in values]
    if entries:
        entries[0] = (values[0], len(hooks))
    stack.extend(entries)
    try:
        with model.hooks(fwd_hooks=hooks):  # type: ignore[operator]
            yield
    finally:
        del stack[len(stack) - len(entries) :]


@contextmanager
def call_hooks(
    model: Any, on_call: Callable[[Mapping[str, Any]], None], on_tokens: Callable[[Tensor], None]
) -> Iterator[None]:
    """Tell the keyword arguments of every call of the model, and then its tokens, before anything is computed."""
    inner = getattr(model, "original_model", None)
    called = [m for m in (model, inner) if m is not None]
    handles = [
        m.register_forward_pre_hook(lambda module, args, kwargs: on_call(kwargs), with_kwargs=True) for m in called
    ]
    handles.append(
        model.embed.register_forward_pre_hook(
            lambda module, args, kwargs: on_tokens(args[0] if args else next(iter(kwargs.values()))), with_kwargs=True
        )
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def past_length(kwargs: Mapping[str, Any]) -> int:
    """Tokens that the key-value cache among the arguments of a call holds already; 0 without one."""
    cache = next((c for n in ("past_kv_cache", "past_key_values") if (c := kwargs.get(n)) is not None), None)
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):  # Hugging Face
        return int(cache.get_seq_length())
    return int(cache.length if hasattr(cache, "length") else cache[0].past_keys.shape[1])  # ours, or 3.9's


def active_interventions(model: Any) -> list[Any]:
    """The interventions that are on, outermost first."""
    return [value for value, _ in _OWN.get(model, [])]


def has_user_hooks(model: Any) -> bool:
    """Whether somebody else's hooks sit on the model."""
    attached = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
    return attached > sum(count for _, count in _OWN.get(model, []))


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """Attention maps by layer, and the prompts they came from.

    Attributes:
        maps: layer -> [batch head query key], or [head query key] once averaged over the batch.
        prompts: the prompts of the maps, or None when they hold for any prompt.
    """

    maps: dict[int, Float[Tensor, "*batch query key"]]
    prompts: Int[Tensor, "batch prompt"] | None = None

    def mean(self, axis: str = "batch") -> "AttentionPattern":
        """The average over the batch, which fits any prompt."""
        if axis != "batch":
            raise ValueError(f"a pattern is averaged over 'batch' only, got {axis!r}")
        maps = {layer: m.mean(0) if m.ndim == 4 else m for layer, m in self.maps.items()}
        return replace(self, maps=maps, prompts=None)

    def __getitem__(self, layer: int) -> Float[Tensor, "*batch query key"]:
        if layer not in self.maps:
            raise ValueError(f"no pattern of layer {layer}; there are layers {sorted(self.maps)}")
        return self.maps[layer]
