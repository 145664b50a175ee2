"""What is changed: interventions are values, and `intervene` is the one place that applies them."""

from plateaulens.interventions.attention import FixAttention, ScaleAttention
from plateaulens.interventions.base import Intervention, from_json, intervene

INTERVENTIONS: dict[str, type[Intervention]] = {"ScaleAttention": ScaleAttention, "FixAttention": FixAttention}

__all__ = ["INTERVENTIONS", "FixAttention", "Intervention", "ScaleAttention", "from_json", "intervene"]
