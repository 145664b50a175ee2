"""Pictures: functions that take Runs, frames or arrays and return a `plotly` figure, never showing or saving it."""

from plateaulens.plots.curves import dynamics, position_accuracy
from plateaulens.plots.maps import attention_map, cosine_map

__all__ = ["attention_map", "cosine_map", "dynamics", "position_accuracy"]
