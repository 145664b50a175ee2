"""Questions to a Run: where its plateau is, and how what is inside evolves."""

from plateaulens.analysis.ablations import Ablation, Directions, ablate_feature
from plateaulens.analysis.across_steps import patch_across_steps
from plateaulens.analysis.budgets import TwoPhases, frontier, two_phases
from plateaulens.analysis.curvature import largest_hessian_eigenvalue, sharpness
from plateaulens.analysis.evolution import Evolution, evolve
from plateaulens.analysis.onset import OnsetOrder, Onsets, onset_order, onsets
from plateaulens.analysis.pairs import PairedDifference, paired_by_seed, paired_difference
from plateaulens.analysis.patching import activation_patching, normalised, path_patching
from plateaulens.analysis.plateau import Plateau, find_plateau, first_crossing
from plateaulens.analysis.probes import (
    Probes,
    Verdict,
    answer_tokens,
    probe,
    probe_over,
    probe_tokens,
    quiet_or_loud,
    thirds,
)

__all__ = [
    "Ablation",
    "Directions",
    "Evolution",
    "OnsetOrder",
    "Onsets",
    "PairedDifference",
    "Plateau",
    "Probes",
    "TwoPhases",
    "Verdict",
    "ablate_feature",
    "activation_patching",
    "answer_tokens",
    "evolve",
    "find_plateau",
    "first_crossing",
    "frontier",
    "largest_hessian_eigenvalue",
    "normalised",
    "onset_order",
    "onsets",
    "paired_by_seed",
    "paired_difference",
    "patch_across_steps",
    "path_patching",
    "probe",
    "probe_over",
    "probe_tokens",
    "quiet_or_loud",
    "sharpness",
    "thirds",
    "two_phases",
]
