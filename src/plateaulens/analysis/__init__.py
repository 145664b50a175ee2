"""Questions to a Run, a suite of checkpoints or one model.

Where the plateau is and which metric leaves it first; how attention and states evolve; what probes read, and what is
lost without it (ablations); what a patch carries, also from one step to another; the best loss of each compute budget;
heads, embeddings and completions of matrices.
"""

from plateaulens.analysis.checkpoint_steps import over_steps
from plateaulens.analysis.checkpoint_traces import Evolution, evolve
from plateaulens.analysis.hessian import largest_hessian_eigenvalue, sharpness
from plateaulens.analysis.onset import OnsetOrder, Onsets, onset_order, onsets
from plateaulens.analysis.paired_differences import PairedDifference, paired_by_seed, paired_difference
from plateaulens.analysis.patching import activation_patching, normalised, path_patching
from plateaulens.analysis.plateau import Plateau, find_plateau, first_crossing
from plateaulens.analysis.step_patching import patch_across_steps

__all__ = [
    "Evolution",
    "OnsetOrder",
    "Onsets",
    "PairedDifference",
    "Plateau",
    "activation_patching",
    "evolve",
    "find_plateau",
    "first_crossing",
    "largest_hessian_eigenvalue",
    "normalised",
    "onset_order",
    "onsets",
    "over_steps",
    "paired_by_seed",
    "paired_difference",
    "patch_across_steps",
    "path_patching",
    "sharpness",
]
