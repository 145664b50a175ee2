"""Table and figure of docs/across_steps.md: `python docs/across_steps.py docs/across_steps.png runs/mws-*`."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

import plateaulens as pl
from plateaulens.papers.abrupt_learning.task_figures import picture


def main(png: str, *paths: str) -> None:
    """Accuracy of the last plateau checkpoint and of the final model with each other's attention or weights."""
    found: dict[str, list[float]] = {}
    for path in paths:
        run = pl.Run(path)
        prompts, final = run.eval_batch()[:64], run.steps[-1]
        end = pl.find_plateau(run).end or final
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
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        sys.stdout.write(f"| {name} | {np.median(values):.3f} ({min(values):.3f} to {max(values):.3f}) |\n")
    first = pl.Run(paths[0])
    figure = pl.plots.step_grid(pl.patch_across_steps(first, first.eval_batch()[:64], progress=False))
    picture(figure.update_layout(paper_bgcolor="white", width=900), Path(png))


def cell(run: pl.Run, prompts: pl.Batch, source: int, target: int, parts: str | None = None) -> float:
    """Teacher-forced accuracy of one pair of steps."""
    grid = pl.patch_across_steps(run, prompts, sources=[source], targets=[target], parts=parts, progress=False)
    return grid.tf_accuracy.item()


if __name__ == "__main__":
    main(*sys.argv[1:])
