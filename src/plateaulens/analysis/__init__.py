"""Questions to a Run: where its plateau is, and how what is inside evolves."""

from plateaulens.analysis.across_steps import patch_across_steps
from plateaulens.analysis.curvature import largest_hessian_eigenvalue, sharpness
from plateaulens.analysis.evolution import Evolution, evolve
from plateaulens.analysis.onset import OnsetOrder, Onsets, onset_order, onsets
from plateaulens.analysis.pairs import PairedDifference, paired_by_seed, paired_difference
from plateaulens.analysis.patching import activation_patching, normalised, path_patching
from plateaulens.analysis.plateau import Plateau, find_plateau, first_crossing

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
    "paired_by_seed",
    "paired_difference",
    "patch_across_steps",
    "path_patching",
    "sharpness",
]
