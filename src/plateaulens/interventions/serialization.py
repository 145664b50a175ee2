"""Fields of interventions as values for JSON: tensors by their digest, tasks and patterns by their parts."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plateaulens._io import digest
from plateaulens.hooks import AttentionPattern
from plateaulens.tasks import TASKS, Task, task_from_json, task_to_json


def to_plain(value: Any) -> Any:
    """The value of a field for JSON."""
    if isinstance(value, Tensor):
        return {"tensor": digest(value)}
    if isinstance(value, Task):
        return {"task": task_to_json(value)}
    if isinstance(value, AttentionPattern):
        maps = {str(layer): to_plain(m) for layer, m in value.maps.items()}
        return {"maps": maps, "prompts": to_plain(value.prompts)}
    return [to_plain(v) for v in value] if isinstance(value, tuple | list) else value


def from_plain(value: Any, tensors: Mapping[str, Tensor], task: Any) -> Any:
    """The inverse of `to_plain`, with the tensors by digest and, for a custom task, the task itself."""
    if isinstance(value, list):
        return tuple(from_plain(v, tensors, task) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "task" in value:
        is_custom = (
            value["task"]["task"] not in TASKS and isinstance(task, Task) and task_to_json(task) == value["task"]
        )
        return task if is_custom else task_from_json(value["task"])
    maps = {int(layer): from_plain(m, tensors, task) for layer, m in value["maps"].items()}
    return AttentionPattern(maps, from_plain(value["prompts"], tensors, task))


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Digest -> tensor, for the tensors in the value of a field."""
    if isinstance(value, AttentionPattern):
        tensors = [*value.maps.values(), *([] if value.prompts is None else [value.prompts])]
    else:
        tensors = [value] if isinstance(value, Tensor) else []
    return {digest(tensor): tensor for tensor in tensors}


def short_repr(value: Any) -> str:
    """The repr of the value of a field, with the shapes of tensors instead of their entries."""
    if isinstance(value, Tensor):
        return f"<{list(value.shape)}>"
    if isinstance(value, AttentionPattern):
        return str({layer: list(m.shape) for layer, m in value.maps.items()})
    return repr(value)
