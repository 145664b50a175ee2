"""Questions to a Run, a suite of checkpoints or one model.

Where the plateau is and which metric leaves it first; how attention and states evolve; what probes read, and what is
lost without it (ablations); what a patch carries, also from one step to another; the best loss of each compute budget;
heads, embeddings and completions of matrices.
"""

from plateaulens.analysis.ablations import Ablation, Directions, ablate_feature
from plateaulens.analysis.across_steps import patch_across_steps
from plateaulens.analysis.budgets import TwoPhases, frontier, two_phases
from plateaulens.analysis.cell_probes import probe_cells
from plateaulens.analysis.completion import copy_check, head_ablations, patch_negated, switch
from plateaulens.analysis.curvature import largest_hessian_eigenvalue, sharpness
from plateaulens.analysis.embeddings import (
    permute_positions,
    position_embeddings,
    token_embeddings,
    token_progress,
    values_of,
)
from plateaulens.analysis.evolution import Evolution, evolve
from plateaulens.analysis.heads import head_atlas, head_groups
from plateaulens.analysis.matrices import completions
from plateaulens.analysis.nuclear_norm import complete_by_nuclear_norm
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
from plateaulens.analysis.shifts import out_of_distribution
from plateaulens.analysis.steps import over_steps

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
    "complete_by_nuclear_norm",
    "completions",
    "copy_check",
    "evolve",
    "find_plateau",
    "first_crossing",
    "frontier",
    "head_ablations",
    "head_atlas",
    "head_groups",
    "largest_hessian_eigenvalue",
    "normalised",
    "onset_order",
    "onsets",
    "out_of_distribution",
    "over_steps",
    "paired_by_seed",
    "paired_difference",
    "patch_across_steps",
    "patch_negated",
    "path_patching",
    "permute_positions",
    "position_embeddings",
    "probe",
    "probe_cells",
    "probe_over",
    "probe_tokens",
    "quiet_or_loud",
    "sharpness",
    "switch",
    "thirds",
    "token_embeddings",
    "token_progress",
    "two_phases",
    "values_of",
]
