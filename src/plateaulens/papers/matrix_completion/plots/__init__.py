"""Figures of matrix completion (arXiv 2410.22244)."""

from plateaulens.papers.matrix_completion.plots.embeddings import position_embeddings, token_embeddings, token_progress
from plateaulens.papers.matrix_completion.plots.heads import (
    copied_tokens,
    head_ablations,
    head_categories,
    head_maps,
    negated_patches,
    swapped_parts,
)
from plateaulens.papers.matrix_completion.plots.losses import cell_probes, completion, ood_losses
from plateaulens.papers.matrix_completion.plots.matrix_steps import matrix_steps

__all__ = [
    "cell_probes",
    "completion",
    "copied_tokens",
    "head_ablations",
    "head_categories",
    "head_maps",
    "matrix_steps",
    "negated_patches",
    "ood_losses",
    "position_embeddings",
    "swapped_parts",
    "token_embeddings",
    "token_progress",
]
