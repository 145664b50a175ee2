"""Figures of matrix completion (arXiv 2410.22244)."""

from plateaulens.papers.matrix_completion.plots.cells import cell_probes, shifts
from plateaulens.papers.matrix_completion.plots.embeddings import position_embeddings, token_embeddings, token_progress
from plateaulens.papers.matrix_completion.plots.heads import (
    copying,
    head_ablations,
    head_categories,
    head_maps,
    negation,
    switching,
)
from plateaulens.papers.matrix_completion.plots.matrix_steps import completion, matrix_steps

__all__ = [
    "cell_probes",
    "completion",
    "copying",
    "head_ablations",
    "head_categories",
    "head_maps",
    "matrix_steps",
    "negation",
    "position_embeddings",
    "shifts",
    "switching",
    "token_embeddings",
    "token_progress",
]
