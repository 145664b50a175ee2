"""Pictures: functions that take Runs, frames or arrays and return a `plotly` figure, never showing or saving it."""

from plateaulens.plots.cells import cell_probes, shifts
from plateaulens.plots.curves import dynamics, part_accuracy, position_accuracy
from plateaulens.plots.embeddings import position_embeddings, token_embeddings, token_progress
from plateaulens.plots.grids import step_grid
from plateaulens.plots.groups import seeds
from plateaulens.plots.heads import copying, head_ablations, head_categories, head_maps, negation, switching
from plateaulens.plots.layers import sites
from plateaulens.plots.maps import attention_map, cosine_map, layer_maps
from plateaulens.plots.matrices import completion, matrix_steps
from plateaulens.plots.onset import onset
from plateaulens.plots.pairs import counterfactual
from plateaulens.plots.patching import patching
from plateaulens.plots.quiet import ablation, probes, scaling_law
from plateaulens.plots.suites import early, layer_steps, side_by_side

__all__ = [
    "ablation",
    "attention_map",
    "cell_probes",
    "completion",
    "copying",
    "cosine_map",
    "counterfactual",
    "dynamics",
    "early",
    "head_ablations",
    "head_categories",
    "head_maps",
    "layer_maps",
    "layer_steps",
    "matrix_steps",
    "negation",
    "onset",
    "part_accuracy",
    "patching",
    "position_accuracy",
    "position_embeddings",
    "probes",
    "scaling_law",
    "seeds",
    "shifts",
    "side_by_side",
    "sites",
    "step_grid",
    "switching",
    "token_embeddings",
    "token_progress",
]
