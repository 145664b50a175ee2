"""Quiet features (arXiv 2505.03997): recipes and what only this paper needs."""

from plateaulens.papers.quiet_features.scaling_law import TwoPhases, frontier, two_phases

__all__ = [
    "TwoPhases",
    "frontier",
    "two_phases",
]
