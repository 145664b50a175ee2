"""The three papers: recipes, experiments, and what only one paper needs."""

from plateaulens.papers import abrupt_learning, matrix_completion, quiet_features

__all__ = ["abrupt_learning", "matrix_completion", "quiet_features"]
