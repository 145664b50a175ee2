"""An adapter over hooked models: `Transformer`, 3.9's `HookedTransformer` and the bridges of TransformerLens 4.

It covers what differs between them: the names of their hooks, which edits take effect, the calls of the model, and
which of the attached hooks belong to interventions.

    hook_names(model)                                     # every hook that the model can fire
    match_hooks(model, ["blocks.*.attn.hook_pattern"])    # the names that globs stand for
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from plateaulens._registry import unknown
from plateaulens.protocols import HookedModel

if TYPE_CHECKING:
    from plateaulens.interventions.base import Intervention

PATTERN_HOOKS = "blocks.*.attn.hook_pattern"
# TransformerLens computes these only when the named flag of the config is set.
CONFIG_FLAGS = {
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_result": "use_attn_result",
}


def hook_names(model: HookedModel) -> set[str]:
    """Names of all hooks that the model can fire as it is configured, aliases included.

    Raises:
        TypeError: if the model has no TransformerLens hooks.
    """
    if not hasattr(model, "hook_dict"):
        raise TypeError(
            f"{type(model).__name__} has no TransformerLens hooks; wrap it in a TransformerBridge to trace or intervene"
        )
    switched_off = tuple(name for name, flag in CONFIG_FLAGS.items() if not getattr(model.cfg, flag, False))
    return {name for name in model.hook_dict if not name.endswith(switched_off)}


def match_hooks(model: HookedModel, globs: Iterable[str]) -> list[str]:
    """The hook names that match any of the names or globs, in the order of `globs`, each once.

    Raises:
        ValueError: for a name or glob without a match; the message suggests the nearest name.
    """
    known = hook_names(model)
    names: dict[str, None] = {}
    for glob in globs:
        matches = [glob] if glob in known else sorted(name for name in known if fnmatchcase(name, glob))
        if not matches:
            raise unknown("hook", glob, known)
        names.update(dict.fromkeys(matches))
    return list(names)


def pattern_hook(layer: int) -> str:
    """The hook name of a layer's attention pattern."""
    return PATTERN_HOOKS.replace("*", str(layer))


def is_attention_map(hook_name: str) -> bool:
    """Whether the activation at a hook is an attention map, [batch head query key]."""
    return hook_name.rsplit(".", 1)[-1] in ("hook_pattern", "hook_attn_scores")


def n_layers(model: HookedModel) -> int:
    """Number of layers of the model."""
    return int(model.cfg.n_layers)


def device_of(model: HookedModel | nn.Module) -> torch.device:
    """The device of the model's weights."""
    return next(model.parameters()).device


def is_native_bridge(model: HookedModel | nn.Module) -> bool:
    """Whether the model is a bridge around TransformerLens's own implementation, where some edits have no effect."""
    return type(getattr(model, "original_model", None)).__name__ == "NativeModel"


def check_writable(model: HookedModel, hook_name: str) -> None:
    """Raise unless an edit at the hook takes full effect on this model.

    Raises:
        ValueError: for an unknown hook, one that needs a flag of the config, and hooks of bridges whose edits are
            discarded or reach only a part of the model.
    """
    ending = hook_name.rsplit(".", 1)[-1] if hook_name != "rotary_emb.hook_in" else hook_name
    flag = CONFIG_FLAGS.get(ending)
    if flag is not None and hook_name in model.hook_dict and not getattr(model.cfg, flag, False):
        raise ValueError(f"{hook_name} is computed only with cfg.{flag}; call model.set_{flag}(True) first")
    match_hooks(model, [hook_name])
    if not hasattr(model, "original_model"):
        return
    without_effect = {
        "hook_resid_mid": "the edit reaches the MLP but not the residual stream",
        "rotary_emb.hook_in": "only the dtype of this tensor is used",
    }
    if is_native_bridge(model):
        without_effect["hook_attn_scores"] = "the scores are only reported; edit hook_pattern"
        from transformer_lens.model_bridge.sources.native import NativeAttention

        if not hasattr(NativeAttention, "accepts_pattern_fn"):
            without_effect["hook_pattern"] = "TransformerLens 3.9 discards the edit"
    if ending in without_effect:
        raise ValueError(
            f"an edit of {hook_name} would not take effect on this bridge ({without_effect[ending]}); "
            "on a pl.Transformer it does"
        )


# Model -> the interventions that are active on it, outermost first, each with its number of attached hooks.
_ACTIVE: "WeakKeyDictionary[object, list[tuple[Intervention, int]]]" = WeakKeyDictionary()


@contextmanager
def attach_interventions(
    model: HookedModel, interventions: Sequence["Intervention"], hooks: Sequence[tuple[str, Callable[..., Tensor]]]
) -> Iterator[None]:
    """Attach the hooks of interventions inside the block, where `active_interventions` lists these."""
    active = _ACTIVE.setdefault(model, [])
    # The hooks are counted together, with the first intervention.
    entries = [(intervention, 0 if i else len(hooks)) for i, intervention in enumerate(interventions)]
    active.extend(entries)
    try:
        with model.hooks(fwd_hooks=list(hooks)):
            yield
    finally:
        del active[len(active) - len(entries) :]


def active_interventions(model: object) -> list["Intervention"]:
    """The interventions that are active on the model, outermost first."""
    return [intervention for intervention, _ in _ACTIVE.get(model, [])]


def has_user_hooks(model: HookedModel) -> bool:
    """Whether the model has forward hooks that do not belong to an intervention."""
    attached = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
    return attached > sum(count for _, count in _ACTIVE.get(model, []))


@contextmanager
def call_hooks(
    model: HookedModel, on_call: Callable[[Mapping[str, Any]], None], on_tokens: Callable[[Tensor], None]
) -> Iterator[None]:
    """Report every call of the model inside the block, before anything is computed.

    Args:
        model: The model.
        on_call: Is given the keyword arguments of each call.
        on_tokens: Is given the tokens of each call, after `on_call`.
    """
    embed: nn.Module = model.embed  # type: ignore[attr-defined] # every hooked model has one; the Protocol is smaller
    modules = [m for m in (model, getattr(model, "original_model", None)) if isinstance(m, nn.Module)]
    handles = [
        m.register_forward_pre_hook(lambda module, args, kwargs: on_call(kwargs), with_kwargs=True) for m in modules
    ]
    handles.append(
        embed.register_forward_pre_hook(
            lambda module, args, kwargs: on_tokens(args[0] if args else next(iter(kwargs.values()))), with_kwargs=True
        )
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def past_length(kwargs: Mapping[str, Any]) -> int:
    """Number of tokens in the key-value cache among the keyword arguments of a call; 0 without a cache."""
    cache = next((c for n in ("past_kv_cache", "past_key_values") if (c := kwargs.get(n)) is not None), None)
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):  # Hugging Face
        return int(cache.get_seq_length())
    return int(cache.length if hasattr(cache, "length") else cache[0].past_keys.shape[1])  # ours, or 3.9's


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """Attention maps of a model by layer, with the prompts that they were computed on.

        pattern = pl.trace(model, batch).pattern()
        pattern[0]               # layer 0, [batch head query key]
        pattern.mean("batch")    # averaged over the prompts, so that `FixAttention` can use it on other prompts

    Attributes:
        maps: Layer -> attention map, [batch head query key], or [head query key] after averaging over the batch.
        prompts: The prompts of the maps, or None if the maps apply to any prompt.
    """

    maps: dict[int, Float[Tensor, "*batch query key"]]
    prompts: Int[Tensor, "batch prompt"] | None = None

    def mean(self, axis: str = "batch") -> "AttentionPattern":
        """The pattern averaged over the batch, which applies to any prompt.

        Raises:
            ValueError: for an axis other than "batch".
        """
        if axis != "batch":
            raise ValueError(f"a pattern can be averaged over 'batch' only, got {axis!r}")
        maps = {layer: m.mean(0) if m.ndim == 4 else m for layer, m in self.maps.items()}
        return replace(self, maps=maps, prompts=None)

    def __getitem__(self, layer: int) -> Float[Tensor, "*batch query key"]:
        if layer not in self.maps:
            raise ValueError(f"no pattern of layer {layer}; there are layers {sorted(self.maps)}")
        return self.maps[layer]
