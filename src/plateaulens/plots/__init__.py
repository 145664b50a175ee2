"""Pictures: functions that take Runs, frames or arrays and return a `plotly` figure, never showing or saving it."""

from plateaulens.plots.curves import dynamics, part_accuracy, position_accuracy
from plateaulens.plots.grids import step_grid
from plateaulens.plots.groups import seeds
from plateaulens.plots.layers import sites
from plateaulens.plots.maps import attention_map, cosine_map, layer_maps
from plateaulens.plots.onset import onset
from plateaulens.plots.pairs import counterfactual
from plateaulens.plots.patching import patching
from plateaulens.plots.suites import early, layer_steps, side_by_side

__all__ = [
    "attention_map",
    "cosine_map",
    "counterfactual",
    "dynamics",
    "early",
    "layer_maps",
    "layer_steps",
    "onset",
    "part_accuracy",
    "patching",
    "position_accuracy",
    "seeds",
    "side_by_side",
    "sites",
    "step_grid",
]
