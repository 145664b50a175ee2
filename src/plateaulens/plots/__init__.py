"""Figures: functions of runs, DataFrames and arrays that return a `plotly` figure and neither show nor save it.

pl.plots.dynamics(run, pl.find_plateau(run)).show()
"""

from plateaulens.plots.attention_maps import attention_map, cosine_map, layer_maps
from plateaulens.plots.counterfactuals import counterfactual
from plateaulens.plots.curves import dynamics, part_accuracy, position_accuracy
from plateaulens.plots.language_models import early, layer_steps, side_by_side
from plateaulens.plots.onsets import onset
from plateaulens.plots.patching_grids import patching
from plateaulens.plots.probing import ablation, probes
from plateaulens.plots.seed_curves import seeds
from plateaulens.plots.site_curves import sites
from plateaulens.plots.step_grids import step_grid

__all__ = [
    "ablation",
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
    "probes",
    "seeds",
    "side_by_side",
    "sites",
    "step_grid",
]
