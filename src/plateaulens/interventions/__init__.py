"""What is changed: interventions are values, and `intervene` is the one place that applies them."""

from plateaulens.interventions.activations import Ablate, Patch, Steer
from plateaulens.interventions.attention import AblateHeads, FixAttention, OptimalAttention, ScaleAttention
from plateaulens.interventions.base import Call, Edit, Intervention, from_json, intervene
from plateaulens.interventions.freezing import Freeze
from plateaulens.interventions.projection import Project

INTERVENTIONS: dict[str, type[Intervention]] = {
    cls.__name__: cls
    for cls in (ScaleAttention, OptimalAttention, FixAttention, AblateHeads, Ablate, Patch, Steer, Project, Freeze)
}

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
