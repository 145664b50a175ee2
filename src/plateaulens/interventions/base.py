"""`Intervention`, and the context manager that applies any number of them.

    with intervene(model, ScaleAttention(task, by=10.0)):
        measure(model, held, watch)

On entering, every site must exist and be writable. When an edit first fires, its shape must be the
shape of what it replaces. On leaving, an edit that never fired although the model ran raises, and a
model that never ran warns.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from plateaulens._lookup import look_up
from plateaulens.hooked import own_hooks, refuse_unwritable

Edit = Callable[[Tensor], Tensor]


class Intervention(ABC):
    """A change of a model's activations, as a value: it has a repr, equality and JSON."""

    @abstractmethod
    def edits(self, model: Any) -> dict[str, Edit]:
        """Hook name -> what to do with the tensor there. Pattern edits find absolute positions by `rows`."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain values, with big tensors as their `digest`."""

    @classmethod
    @abstractmethod
    def from_values(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Intervention":
        """The intervention that `to_json` wrote."""

    def tensors(self) -> dict[str, Tensor]:
        """Digest -> tensor, for whoever saves the intervention."""
        return {}

    def check(self, tokens: Int[Tensor, "batch pos"]) -> None:  # noqa: B027 (nothing to check by default)
        """Raise if the intervention does not fit the prompts the model is being run on."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(str(self.to_json()))


@contextmanager
def intervene(model: Any, *interventions: Intervention) -> Iterator[None]:
    """Apply `interventions` to `model`, in order, until the block ends.

    Raises:
        ValueError: for a site that is missing or cannot act, an edit of the wrong shape, other prompts
            than a pattern came from, or an edit that never fired although the model ran.
    """
    fired: dict[tuple[int, str], bool] = {}
    hooks = []
    for i, intervention in enumerate(interventions):
        for site, edit in intervention.edits(model).items():
            refuse_unwritable(model, site)
            fired[i, site] = False
            hooks.append((site, _hook(intervention, (i, site), edit, fired)))
    runs: list[bool] = []

    def on_tokens(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else next(iter(kwargs.values()))
        runs.append(True)
        for intervention in interventions:
            intervention.check(tokens)

    watcher = model.embed.register_forward_pre_hook(on_tokens, with_kwargs=True)
    try:
        with own_hooks(model, list(interventions), hooks):
            yield
    finally:
        watcher.remove()
    silent = [f"{interventions[i]!r} at {site}" for (i, site), did in fired.items() if not did]
    if silent and runs:
        raise ValueError(f"the model ran but these never acted: {'; '.join(silent)}")
    if silent:
        warnings.warn("intervene: the model never ran inside the block, so nothing was changed", stacklevel=3)


def _hook(
    intervention: Intervention, key: tuple[int, str], edit: Edit, fired: dict[tuple[int, str], bool]
) -> Callable[..., Tensor]:
    def hook(tensor: Tensor, hook: Any) -> Tensor:
        new = edit(tensor)
        if new.shape != tensor.shape:
            raise ValueError(
                f"{intervention!r} gives shape {list(new.shape)} at {key[1]}, where the model has "
                f"{list(tensor.shape)}; nothing is broadcast silently"
            )
        fired[key] = True
        return new

    return hook


def rows(full: Tensor, pattern: Tensor, what: str) -> Tensor:
    """The part of a [... query key] map that belongs to `pattern`, whose queries are the last of its keys.

    This is what makes a map act on the right row in cached decoding, where one query comes at a time.
    """
    query, key = pattern.shape[-2:]
    if key > full.shape[-1]:
        raise ValueError(
            f"{what} covers {full.shape[-1]} positions and the model runs on {key}; run it on batch.inputs"
        )
    return full[..., key - query : key, :key]


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's shape, dtype and bytes."""
    plain = tensor.detach().cpu().contiguous()
    return sha256(f"{plain.dtype}{list(plain.shape)}".encode() + plain.view(torch.uint8).numpy().tobytes()).hexdigest()


def from_json(values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Intervention:
    """The intervention that `to_json` wrote; `tensors` by digest."""
    from plateaulens.interventions import INTERVENTIONS

    rest = {k: v for k, v in values.items() if k != "intervention"}
    return look_up("intervention", values["intervention"], INTERVENTIONS).from_values(rest, tensors or {})
