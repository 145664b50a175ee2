"""Abrupt learning (arXiv 2506.13688): recipes, the effects of changes, and commands that make tables and figures.

    run = RECIPES["mws"].record("runs/mws-0", seed=0)
    for name, run in reproduce(["changes"], "runs/changes", small=True): ...
    effects("runs/changes")

`python -m plateaulens.papers.abrupt_learning.MODULE`, with MODULE `run_table`, `changes_table`, `step_patching_table`
or `task_figures`, makes those of the documentation from folders of runs.
"""

from plateaulens.papers.abrupt_learning.paired_effects import effects
from plateaulens.papers.abrupt_learning.recipes import GROUPS, RECIPES, SMALL_RECIPES, reproduce, summary

__all__ = ["GROUPS", "RECIPES", "SMALL_RECIPES", "effects", "reproduce", "summary"]
