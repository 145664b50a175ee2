"""Analyses of a run, of a series of checkpoints, or of one model.

The plateau and which metric leaves it first; paired differences over seeds; activation, path and cross-step patching;
attention and hidden states over checkpoints; sharpness.
"""

from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.analysis.checkpoint_traces import CheckpointTraces, trace_checkpoints
from plateaulens.analysis.hessian import largest_hessian_eigenvalue, sharpness
from plateaulens.analysis.onset import OnsetOrder, Onsets, onset_order, onsets
from plateaulens.analysis.paired_differences import PairedDifference, paired_by_seed, paired_difference
from plateaulens.analysis.patching import activation_patching, normalized, path_patching
from plateaulens.analysis.plateau import Plateau, PlateauRule, find_plateau, first_crossing
from plateaulens.analysis.step_patching import patch_across_steps

__all__ = [
    "CheckpointTraces",
    "OnsetOrder",
    "Onsets",
    "PairedDifference",
    "Plateau",
    "PlateauRule",
    "activation_patching",
    "trace_checkpoints",
    "find_plateau",
    "first_crossing",
    "largest_hessian_eigenvalue",
    "normalized",
    "onset_order",
    "onsets",
    "map_checkpoints",
    "paired_by_seed",
    "paired_difference",
    "patch_across_steps",
    "path_patching",
    "sharpness",
]
