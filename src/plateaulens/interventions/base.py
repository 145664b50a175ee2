"""`Intervention`, and the context manager that applies any number of them.

    with intervene(model, ScaleAttention(task, factor=10.0)):
        measure(model, eval_batch, metrics)

On entering, every site must exist and be writable. When an edit first fires, its shape must be the
shape of what it replaces. On leaving, an edit that never fired although the model ran raises, and a
model that never ran warns.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from plateaulens._io import digest
from plateaulens._registry import look_up
from plateaulens._signals import uninterruptible
from plateaulens.hooks import AttentionPattern, attach_interventions, call_hooks, check_writable, past_length
from plateaulens.tasks import TASKS, Task, task_from_json, task_to_json


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the model, as an edit needs to know it.

    Attributes:
        tokens: everything from position 0 to the last row of this call; of cached decoding, the earlier
            tokens too. None when decoding began before the intervention did.
        start: absolute position of the first row that this call computes.
    """

    tokens: Int[Tensor, "batch pos"] | None
    start: int


Edit = Callable[[Tensor, Call], Tensor]


class Intervention:
    """A change of a model, as a value: a frozen dataclass with repr, equality and JSON.

    A subclass gives `edits`, or `frozen`, or both.
    """

    def edits(self, model: Any) -> dict[str, Edit]:
        """Hook name -> the new tensor there; absolute positions come from the `Call`.

        An edit returns a new tensor; the very same one says that nothing of this call was meant.
        """
        return {}

    def frozen(self, model: Any) -> list[nn.Parameter]:
        """Parameters that must not learn."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Plain values, with big tensors as their `digest`."""
        return {"intervention": type(self).__name__, **{name: _plain(value) for name, value in self._fields()}}

    def tensors(self) -> dict[str, Tensor]:
        """Digest -> tensor, for whoever saves the intervention."""
        return {digest(t): t for _, value in self._fields() for t in _tensors(value)}

    def _fields(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(str(self.to_json()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in self._fields())})"


def intervene(model: Any, *interventions: Intervention) -> AbstractContextManager[None]:
    """Apply `interventions` to `model`, in order, until the block ends, even if it is by Ctrl-C.

    Raises:
        ValueError: for a site that is missing or cannot act, an edit of the wrong shape, other prompts
            than a pattern came from, or an intervention that never acted although the model ran (a
            `Freeze` acts when the model runs with gradients on).
    """
    return uninterruptible(_applied(model, interventions))


@contextmanager
def _applied(model: Any, interventions: Sequence[Intervention]) -> Iterator[None]:
    if getattr(model, "read_only", False):
        raise ValueError(f"a {type(model).__name__} can be read, not edited; use the bridge of Checkpoints.model(step)")
    silent: dict[tuple[int, str], bool] = {}
    calls = _Calls()
    hooks = []
    for i, intervention in enumerate(interventions):
        for site, edit in intervention.edits(model).items():
            check_writable(model, site)
            silent[i, site] = True
            hooks.append((site, _hook(intervention, (i, site), edit, silent, calls)))
    frozen = {i: found for i, intervention in enumerate(interventions) if (found := intervention.frozen(model))}
    silent |= {(i, "its parameters"): True for i in frozen}

    def on_tokens(tokens: Tensor) -> None:
        calls.see(tokens)
        if torch.is_grad_enabled():
            silent.update({(i, "its parameters"): False for i in frozen})

    with ExitStack() as stack:
        stack.enter_context(_no_gradient([p for found in frozen.values() for p in found]))
        stack.enter_context(call_hooks(model, lambda kwargs: calls.begin(past_length(kwargs)), on_tokens))
        stack.enter_context(attach_interventions(model, list(interventions), hooks))
        yield
    if left := [f"{interventions[i]!r} at {where}" for (i, where), did_not in silent.items() if did_not]:
        if calls.count:
            raise ValueError(f"the model ran but these never acted: {'; '.join(left)}")
        warnings.warn("intervene: the model never ran inside the block, so nothing was changed", stacklevel=4)


class _Calls:
    """Follows the model's calls, so that every edit knows where it stands."""

    def __init__(self) -> None:
        self.count, self.now = 0, Call(None, 0)

    def begin(self, start: int) -> None:
        self.now = Call(self.now.tokens, start)

    def see(self, tokens: Tensor) -> None:
        self.count += 1
        start, before = self.now.start, self.now.tokens
        if not start:
            self.now = Call(tokens, 0)
        elif before is not None and len(before) == len(tokens) and before.shape[1] >= start:
            self.now = Call(torch.cat([before[:, :start], tokens], 1), start)
        else:
            self.now = Call(None, start)


def _hook(
    intervention: Intervention, key: tuple[int, str], edit: Edit, silent: dict[tuple[int, str], bool], calls: _Calls
) -> Callable[..., Tensor]:
    def hook(tensor: Tensor, hook: Any) -> Tensor:
        if not tensor.is_floating_point():
            raise ValueError(f"{intervention!r} at {key[1]}: there are tokens there, no activations; nothing would act")
        new = edit(tensor, calls.now)
        if new.shape != tensor.shape:
            raise ValueError(
                f"{intervention!r} gives shape {list(new.shape)} at {key[1]}, where the model has "
                f"{list(tensor.shape)}; nothing is broadcast silently"
            )
        if new is not tensor:  # the very tensor: nothing of this call was meant
            silent[key] = False
        return new

    return hook


@contextmanager
def _no_gradient(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, learns in reversed(list(zip(parameters, before, strict=True))):  # two may freeze the same one
            p.requires_grad_(learns)


# JSON: tensors by digest, tasks and patterns by their parts.


def from_json(values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, task: Any = None) -> Intervention:
    """The intervention that `to_json` wrote; `tensors` by digest, and `task` in case it is one of the user's own."""
    from plateaulens.interventions import INTERVENTIONS

    cls = look_up("intervention", values["intervention"], INTERVENTIONS)
    return cls(**{k: _value(v, tensors or {}, task) for k, v in values.items() if k != "intervention"})


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": digest(value)}
    if isinstance(value, Task):
        return {"task": task_to_json(value)}
    if isinstance(value, AttentionPattern):
        return {"maps": {str(layer): _plain(m) for layer, m in value.maps.items()}, "prompts": _plain(value.prompts)}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _value(value: Any, tensors: Mapping[str, Tensor], task: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return tuple(_value(v, tensors, task) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "task" in value:
        own = value["task"]["task"] not in TASKS and isinstance(task, Task) and task_to_json(task) == value["task"]
        return task if own else task_from_json(value["task"])
    maps = {int(layer): _value(m, tensors, task) for layer, m in value["maps"].items()}
    return AttentionPattern(maps, _value(value["prompts"], tensors, task))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, AttentionPattern):
        return [*value.maps.values(), *_tensors(value.prompts)]
    return [value] if isinstance(value, Tensor) else []


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{list(value.shape)}>"
    if isinstance(value, AttentionPattern):
        return str({layer: list(m.shape) for layer, m in value.maps.items()})
    return repr(value)
