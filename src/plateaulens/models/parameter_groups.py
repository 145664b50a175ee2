"""The parts of a model by name, and `graft`: the weights of one model's parts in another.

graft(plateau, final, "attn")          # the plateau model with the final model's attention
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from plateaulens._registry import unknown
from plateaulens.hooks import active_interventions, is_native_bridge

# Globs over parameter names: of `Transformer`, of 3.9's `HookedTransformer`, of native bridges.
_PARTS: dict[str, tuple[str, ...]] = {
    "embed": ("embed.*", "tok_embed.*"),
    "pos": ("pos_embed.*", "pos.*"),
    "qk": ("*.attn.[qk].*", "*.attn.[Wb]_[QK]"),
    "ov": ("*.attn.[vo].*", "*.attn.[Wb]_[VO]"),
    "mlp": ("*.mlp.*",),
    "ln_embed": ("ln_embed.*",),
    "ln1": ("*.ln1.*",),
    "ln2": ("*.ln2.*",),
    "ln_final": ("ln_final.*", "ln_out.*"),
    "unembed": ("unembed.*", "head.*"),
}
_GROUPS: dict[str, tuple[str, ...]] = {
    "attn": ("qk", "ov"),
    "norms": ("ln_embed", "ln1", "ln2", "ln_final"),
    # The sets that arXiv 2506.13688 copies and freezes (fig. 5).
    "KQ": ("qk", "embed", "pos", "ln1"),
    "KQOV": ("qk", "ov", "embed", "pos", "ln1"),
    "MLP": ("mlp", "ln2", "unembed", "ln_final"),
    "Embedding": ("embed", "pos", "unembed", "ln_final"),
}
PARTS: Mapping[str, tuple[str, ...]] = {
    **_PARTS,
    **{group: tuple(glob for part in parts for glob in _PARTS[part]) for group, parts in _GROUPS.items()},
}


def parameters_of(model: nn.Module, parts: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of the named parts (`PARTS`), or of globs over parameter names like "blocks.0.*".

    "qk" and "ov" take their biases along, "attn" is both, "mlp" has no norm.

    Raises:
        ValueError: for a part that is unknown or that the model does not have, and for bridges of Hugging
            Face models, which keep copies of their weights.
    """
    inner = getattr(model, "original_model", None)
    if inner is not None and not is_native_bridge(model):
        raise ValueError(
            f"the bridge of a {type(inner).__name__} keeps copies of its weights, so changing them here would not act; "
            "change the Hugging Face module and build a new bridge"
        )
    named = {name.replace("_original_component.", ""): p for name, p in model.named_parameters()}
    found: dict[str, nn.Parameter] = {}
    for part in [parts] if isinstance(parts, str) else parts:
        hits = {n: p for n, p in named.items() if any(fnmatchcase(n, glob) for glob in PARTS.get(part, (part,)))}
        if not hits:
            raise unknown("part of this model", part, [*PARTS, *named])
        found |= hits
    return {name: p for name, p in named.items() if name in found}


@torch.no_grad()
def graft(model: Any, donor: nn.Module, parts: str | Sequence[str]) -> Any:
    """A copy of `model` with the weights of `donor` in the named parts (arXiv 2506.13688, fig. 5).

    Args:
        model: left as it is; hooks are not copied.
        donor: a model of the same kind whose named parts have the same shapes.
        parts: names of `PARTS`, or globs over parameter names.

    Raises:
        ValueError: for an unknown part, a donor whose parts differ in name or shape, or while interventions are
            active on the model.
    """
    if on := active_interventions(model):  # a copy would keep what they freeze and some of their hooks for ever
        raise ValueError(f"cannot graft while {on} is active on the model; leave the `with intervene(...)` first")
    copy = deepcopy(model)
    if hasattr(copy, "reset_hooks"):
        copy.reset_hooks()
    own, others = parameters_of(copy, parts), parameters_of(donor, parts)
    wrong = [n for n, p in own.items() if n not in others or others[n].shape != p.shape] or sorted(
        set(others) - set(own)
    )
    if wrong:
        raise ValueError(
            f"cannot graft {parts!r}: {wrong[0]} differs between model and donor (and {len(wrong) - 1} more)"
        )
    for name, parameter in own.items():
        parameter.copy_(others[name])
    return copy
