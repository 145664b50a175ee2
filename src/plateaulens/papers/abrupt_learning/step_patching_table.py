"""Table and figure of docs/across_steps.md.

python -m plateaulens.papers.abrupt_learning.step_patching_table docs/across_steps.png runs/mws-?
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from plateaulens import plots
from plateaulens.analysis import find_plateau, patch_across_steps
from plateaulens.batch import Batch
from plateaulens.papers.abrupt_learning.task_figures import picture
from plateaulens.runs.run import Run


def main(png: str, *paths: str) -> None:
    """Print the accuracy of the last plateau checkpoint and of the final model with each other's attention or weights.

    Args:
        png: File for the figure, the grid of the first run.
        paths: Folders of the runs.
    """
    accuracies: dict[str, list[float]] = {}
    for path in paths:
        run = Run(path)
        prompts, final = run.eval_batch()[:64], run.steps[-1]
        end = find_plateau(run).end or final
        plateau = max(step for step in run.steps if step <= end)
        accuracy = partial(cell, run, prompts)
        row = {
            "plateau, its own attention": accuracy(plateau, plateau),
            "plateau, the final attention pattern": accuracy(final, plateau),
            "plateau, the final query and key weights": accuracy(final, plateau, "qk"),
            "plateau, all final attention weights": accuracy(final, plateau, "attn"),
            "plateau, the final MLP": accuracy(final, plateau, "mlp"),
            "final, its own attention": accuracy(final, final),
            "final, the plateau's attention pattern": accuracy(plateau, final),
        }
        for name, value in row.items():
            accuracies.setdefault(name, []).append(value)
    for name, values in accuracies.items():
        sys.stdout.write(f"| {name} | {np.median(values):.3f} ({min(values):.3f} to {max(values):.3f}) |\n")
    first = Run(paths[0])
    figure = plots.step_grid(patch_across_steps(first, first.eval_batch()[:64], progress=False))
    picture(figure.update_layout(paper_bgcolor="white", width=900), Path(png))


def cell(run: Run, prompts: Batch, source: int, target: int, parts: str | None = None) -> float:
    """Teacher-forced accuracy of one pair of steps."""
    grid = patch_across_steps(run, prompts, sources=[source], targets=[target], parts=parts, progress=False)
    return grid.tf_accuracy.item()


if __name__ == "__main__":
    main(*sys.argv[1:])
