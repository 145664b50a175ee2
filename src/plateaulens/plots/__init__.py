"""Pictures: functions that take Runs, frames or arrays and return a `plotly` figure, never showing or saving it."""

from plateaulens.plots.curves import dynamics, part_accuracy, position_accuracy
from plateaulens.plots.groups import seeds
from plateaulens.plots.layers import sites
from plateaulens.plots.maps import attention_map, cosine_map, layer_maps

__all__ = [
    "attention_map",
    "cosine_map",
    "dynamics",
    "layer_maps",
    "part_accuracy",
    "position_accuracy",
    "seeds",
    "sites",
]
