"""Interventions: changes of a model, as values, which `intervene` applies.

with pl.intervene(model, pl.ScaleAttention(task, factor=10.0)):
    pl.measure(model, eval_batch, ["accuracy"])
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.interventions.activations import Ablate, Patch, Steer
from plateaulens.interventions.attention import AblateHeads, FixAttention, OptimalAttention, ScaleAttention
from plateaulens.interventions.base import Call, Edit, Intervention, intervene
from plateaulens.interventions.freezing import Freeze
from plateaulens.interventions.projection import Project
from plateaulens.interventions.serialization import from_plain

INTERVENTIONS: dict[str, type[Intervention]] = {
    cls.__name__: cls
    for cls in (ScaleAttention, OptimalAttention, FixAttention, AblateHeads, Ablate, Patch, Steer, Project, Freeze)
}


def from_json(values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, task: Any = None) -> Intervention:
    """The intervention that `to_json` wrote.

    Args:
        values: The result of `Intervention.to_json`.
        tensors: The result of `Intervention.tensors`, needed for interventions with tensors.
        task: The task of the intervention, needed if it is not in `TASKS`.

    Raises:
        ValueError: for an unknown kind of intervention.
    """
    cls = look_up("intervention", values["intervention"], INTERVENTIONS)
    return cls(**{k: from_plain(v, tensors or {}, task) for k, v in values.items() if k != "intervention"})


__all__ = [
    "INTERVENTIONS",
    "Ablate",
    "AblateHeads",
    "Call",
    "Edit",
    "FixAttention",
    "Freeze",
    "Intervention",
    "OptimalAttention",
    "Patch",
    "Project",
    "ScaleAttention",
    "Steer",
    "from_json",
    "intervene",
]
