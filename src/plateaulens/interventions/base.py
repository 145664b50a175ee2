"""`Intervention`, and `intervene`, the context manager that applies interventions to a model.

    with intervene(model, ScaleAttention(task, factor=10.0)):
        measure(model, eval_batch, metrics)

Checks on entering: every hook exists and an edit of it takes effect. When an edit is first applied: it keeps the shape
of the activation. On leaving: every edit was applied if the model ran; if the model did not run, a warning is given.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from plateaulens._signals import uninterruptible
from plateaulens.hooks import attach_interventions, call_hooks, check_writable, past_length
from plateaulens.interventions.serialization import short_repr, tensors_of, to_plain
from plateaulens.protocols import HookedModel


@dataclass(frozen=True, eq=False)
class Call:
    """Position of one call of the model in the sequences that it works on.

    Attributes:
        tokens: All tokens from position 0 to the last row of this call, also the earlier ones of cached decoding.
            None if decoding began before the intervention.
        start: Absolute position of the first row that this call computes.
    """

    tokens: Int[Tensor, "batch pos"] | None
    start: int


Edit = Callable[[Tensor, Call], Tensor]


class Intervention:
    """A change of a model, as a value: a frozen dataclass with repr, equality and JSON.

    A subclass defines `edits`, `frozen`, or both.
    """

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        """Hook name -> function that returns the new activation, given the old one and the `Call`.

        A function that returns the same tensor object leaves this call unchanged, which counts as not applied.
        """
        return {}

    def frozen(self, model: HookedModel) -> list[nn.Parameter]:
        """Parameters that are not trained."""
        return []

    def to_json(self) -> dict[str, Any]:
        """The fields as values for JSON; tensors are represented by their `digest`, see `tensors`."""
        return {"intervention": type(self).__name__, **{name: to_plain(value) for name, value in self._fields()}}

    def tensors(self) -> dict[str, Tensor]:
        """Digest -> tensor, for all tensors among the fields."""
        return {key: tensor for _, value in self._fields() for key, tensor in tensors_of(value).items()}

    def _fields(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type] # subclasses are dataclasses

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(str(self.to_json()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={short_repr(value)}' for name, value in self._fields())})"


def intervene(model: HookedModel, *interventions: Intervention) -> AbstractContextManager[None]:
    """A context manager that applies `interventions` to `model`, in the given order, until the block ends.

    They act in training, in measuring and in decoding, and are removed after an error or Ctrl-C too.

    Args:
        model: The model to change, a `Transformer` or any TransformerLens model.
        interventions: The changes.

    Raises:
        ValueError: On entering, for a hook that is missing or whose edits would not take effect. When the model runs,
            for an edit of the wrong shape, or other prompts than a pattern was computed on. On leaving, for an
            intervention that was never applied although the model ran (a `Freeze` is applied when the model runs
            with gradients enabled).
    """
    return uninterruptible(_applied(model, interventions))


@contextmanager
def _applied(model: HookedModel, interventions: Sequence[Intervention]) -> Iterator[None]:
    unused: dict[tuple[int, str], bool] = {}  # (index of the intervention, hook name) -> whether it was never applied
    calls = _CallTracker()
    hooks = []
    if getattr(model, "read_only", False):
        raise ValueError(f"a {type(model).__name__} can be read, not edited; use the bridge of Checkpoints.model(step)")
    for i, intervention in enumerate(interventions):
        for site, edit in intervention.edits(model).items():
            check_writable(model, site)
            unused[i, site] = True
            hooks.append((site, _hook(intervention, (i, site), edit, unused, calls)))
    frozen = {i: parameters for i, change in enumerate(interventions) if (parameters := change.frozen(model))}
    unused |= {(i, "its parameters"): True for i in frozen}

    def on_tokens(tokens: Tensor) -> None:
        calls.set_tokens(tokens)
        if torch.is_grad_enabled():
            unused.update({(i, "its parameters"): False for i in frozen})

    with ExitStack() as stack:
        stack.enter_context(_requires_no_grad([p for parameters in frozen.values() for p in parameters]))
        stack.enter_context(call_hooks(model, lambda kwargs: calls.begin(past_length(kwargs)), on_tokens))
        stack.enter_context(attach_interventions(model, interventions, hooks))
        yield
    if never_applied := [f"{interventions[i]!r} at {site}" for (i, site), was_unused in unused.items() if was_unused]:
        if calls.count:
            raise ValueError(f"the model ran, but these were never applied: {'; '.join(never_applied)}")
        warnings.warn("intervene: the model never ran inside the block, so nothing was changed", stacklevel=4)


class _CallTracker:
    """Follows the calls of a model, so that edits know absolute positions and earlier tokens."""

    def __init__(self) -> None:
        self.count, self.current = 0, Call(None, 0)

    def begin(self, start: int) -> None:
        self.current = Call(self.current.tokens, start)

    def set_tokens(self, tokens: Tensor) -> None:
        self.count += 1
        start, before = self.current.start, self.current.tokens
        if not start:
            self.current = Call(tokens, 0)
        elif before is not None and len(before) == len(tokens) and before.shape[1] >= start:
            self.current = Call(torch.cat([before[:, :start], tokens], 1), start)
        else:
            self.current = Call(None, start)


def _hook(
    intervention: Intervention,
    key: tuple[int, str],
    edit: Edit,
    unused: dict[tuple[int, str], bool],
    calls: _CallTracker,
) -> Callable[..., Tensor]:
    """A TransformerLens hook that applies `edit`, checks the shape and marks `key` as used."""

    def hook(tensor: Tensor, hook: Any) -> Tensor:
        if not tensor.is_floating_point():
            raise ValueError(f"{intervention!r}: {key[1]} holds tokens, not activations; choose another hook")
        new = edit(tensor, calls.current)
        if new.shape != tensor.shape:
            raise ValueError(
                f"{intervention!r} gives shape {list(new.shape)} at {key[1]}, where the model has "
                f"{list(tensor.shape)}; nothing is broadcast silently"
            )
        if new is not tensor:  # the same object: the edit concerns nothing in this call
            unused[key] = False
        return new

    return hook


@contextmanager
def _requires_no_grad(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switch gradients of the parameters off inside the block."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in reversed(list(zip(parameters, before, strict=True))):  # a parameter may be listed twice
            p.requires_grad_(flag)
