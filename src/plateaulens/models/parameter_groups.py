"""Named groups of parameters, and `graft`, which copies the groups of one model into another.

graft(plateau, final, "attn")          # the plateau model with the attention weights of the final model
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import torch
from torch import nn

from plateaulens._registry import unknown
from plateaulens.hooks import active_interventions, is_native_bridge
from plateaulens.protocols import HookedModel

Model = TypeVar("Model", bound=nn.Module | HookedModel)

# Globs over the parameter names of `Transformer`, 3.9's `HookedTransformer` and native bridges.
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
    # The sets of arXiv 2506.13688, fig. 5.
    "KQ": ("qk", "embed", "pos", "ln1"),
    "KQOV": ("qk", "ov", "embed", "pos", "ln1"),
    "MLP": ("mlp", "ln2", "unembed", "ln_final"),
    "Embedding": ("embed", "pos", "unembed", "ln_final"),
}
PARTS: Mapping[str, tuple[str, ...]] = {
    **_PARTS,
    **{group: tuple(glob for part in parts for glob in _PARTS[part]) for group, parts in _GROUPS.items()},
}
"""Name of a part -> globs over parameter names, for `graft` and `Freeze`.

Parts: "embed", "pos", "qk", "ov", "mlp", "ln_embed", "ln1", "ln2", "ln_final", "unembed". Groups of parts: "attn" (qk
and ov), "norms" (all norms), and the sets that arXiv 2506.13688 copies and freezes (fig. 5): "KQ", "KQOV", "MLP",
"Embedding". Biases belong to the part of their weight; "mlp" has no norm.
"""


def parameters_of(model: nn.Module | HookedModel, parts: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of the named parts, by name.

    Args:
        model: A `Transformer`, `HookedTransformer` or native bridge.
        parts: Names of `PARTS`, or globs over parameter names like "blocks.0.*".

    Raises:
        ValueError: for a part that is unknown or that the model does not have, and for bridges of Hugging Face models,
            which hold copies of their weights.
    """
    inner = getattr(model, "original_model", None)
    if inner is not None and not is_native_bridge(model):
        raise ValueError(
            f"the bridge of a {type(inner).__name__} holds copies of its weights, so changing them would have no "
            "effect; change the Hugging Face module and build a new bridge"
        )
    named = {name.replace("_original_component.", ""): p for name, p in cast(nn.Module, model).named_parameters()}
    selected: set[str] = set()
    for part in [parts] if isinstance(parts, str) else parts:
        matches = {name for name in named if any(fnmatchcase(name, glob) for glob in PARTS.get(part, (part,)))}
        if not matches:
            raise unknown("part of this model", part, [*PARTS, *named])
        selected |= matches
    return {name: p for name, p in named.items() if name in selected}


@torch.no_grad()
def graft(model: Model, donor: nn.Module | HookedModel, parts: str | Sequence[str]) -> Model:
    """A copy of `model` with the weights of `donor` in the named parts (arXiv 2506.13688, fig. 5).

    Args:
        model: Model to copy; it is not changed, and its hooks are not copied.
        donor: Model of the same kind, whose named parts have the same shapes.
        parts: Names of `PARTS`, or globs over parameter names.

    Raises:
        ValueError: for an unknown part, a donor whose parts differ in name or shape, or while interventions are
            active on the model.
    """
    if active := active_interventions(model):  # the copy would keep their frozen parameters and some of their hooks
        raise ValueError(f"cannot graft while {active} is active on the model; leave the `with intervene(...)` first")
    copy = deepcopy(model)
    if hasattr(copy, "reset_hooks"):
        copy.reset_hooks()  # type: ignore[operator]  # torch types every attribute as a Tensor or a Module
    targets, sources = parameters_of(copy, parts), parameters_of(donor, parts)
    differing = [n for n, p in targets.items() if n not in sources or sources[n].shape != p.shape]
    differing = differing or sorted(set(sources) - set(targets))
    if differing:
        raise ValueError(
            f"cannot graft {parts!r}: {differing[0]} differs between model and donor (and {len(differing) - 1} more)"
        )
    for name, parameter in targets.items():
        parameter.copy_(sources[name])
    return copy
