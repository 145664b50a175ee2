"""Quiet features (arXiv 2505.03997): recipes, loss against compute, and the experiment of docs/quiet.md.

    run = SMALL_RECIPES["binary-addition"].record("runs/addition", seed=0)

`python -m plateaulens.papers.quiet_features.experiment` makes the tables of docs/quiet.md.
"""

from plateaulens.papers.quiet_features import plots
from plateaulens.papers.quiet_features.recipes import RECIPES, SMALL_RECIPES, grid, schedule
from plateaulens.papers.quiet_features.scaling_law import TwoPhases, flops, frontier, steps_for, two_phases

__all__ = [
    "RECIPES",
    "SMALL_RECIPES",
    "TwoPhases",
    "flops",
    "frontier",
    "grid",
    "plots",
    "schedule",
    "steps_for",
    "two_phases",
]
