"""Matrix completion (arXiv 2410.22244): recipes, experiments and what only this paper needs."""

from plateaulens.papers.matrix_completion import plots
from plateaulens.papers.matrix_completion.cell_probes import probe_cells
from plateaulens.papers.matrix_completion.cells import disconnected
from plateaulens.papers.matrix_completion.completions import completions
from plateaulens.papers.matrix_completion.copy_check import copy_check
from plateaulens.papers.matrix_completion.embeddings import (
    permute_positions,
    position_embeddings,
    token_embeddings,
    token_progress,
    token_values,
)
from plateaulens.papers.matrix_completion.head_ablation import head_ablations
from plateaulens.papers.matrix_completion.head_atlas import head_atlas, head_groups
from plateaulens.papers.matrix_completion.negated_patching import patch_negated
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.papers.matrix_completion.out_of_distribution import evaluate_ood
from plateaulens.papers.matrix_completion.part_swapping import swap_parts
from plateaulens.papers.matrix_completion.report import report_sections

__all__ = [
    "complete_by_nuclear_norm",
    "completions",
    "copy_check",
    "disconnected",
    "evaluate_ood",
    "head_ablations",
    "head_atlas",
    "head_groups",
    "patch_negated",
    "permute_positions",
    "plots",
    "position_embeddings",
    "probe_cells",
    "report_sections",
    "swap_parts",
    "token_embeddings",
    "token_progress",
    "token_values",
]
