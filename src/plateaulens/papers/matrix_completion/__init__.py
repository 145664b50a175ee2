"""Matrix completion (arXiv 2410.22244): recipes, experiments and what only this paper needs."""

from plateaulens.papers.matrix_completion import plots
from plateaulens.papers.matrix_completion.ablation_and_patching import (
    copy_check,
    head_ablations,
    patch_negated,
    swap_parts,
)
from plateaulens.papers.matrix_completion.cell_probes import probe_cells
from plateaulens.papers.matrix_completion.completions import completions
from plateaulens.papers.matrix_completion.connectivity import disconnected
from plateaulens.papers.matrix_completion.embedding_structure import (
    permute_positions,
    position_embeddings,
    token_embeddings,
    token_progress,
    values_of,
)
from plateaulens.papers.matrix_completion.head_atlas import head_atlas, head_groups
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.papers.matrix_completion.out_of_distribution import evaluate_ood
from plateaulens.papers.matrix_completion.report import report_sections

__all__ = [
    "plots",
    "complete_by_nuclear_norm",
    "completions",
    "copy_check",
    "disconnected",
    "head_ablations",
    "head_atlas",
    "head_groups",
    "evaluate_ood",
    "report_sections",
    "patch_negated",
    "permute_positions",
    "position_embeddings",
    "probe_cells",
    "swap_parts",
    "token_embeddings",
    "token_progress",
    "values_of",
]
