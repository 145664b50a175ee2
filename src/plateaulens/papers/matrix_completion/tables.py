"""The tables of docs/matrix.md; what is not trained yet is trained first.

python docs/matrix.py runs/matrix 3                         # the curves of three seeds, and what is inside each
python docs/matrix.py runs/matrix 1 --only components       # single components of seed 0, 6,000 steps each
python docs/matrix.py runs/matrix 1 --only smaller          # smaller settings with uniform factors, one seed each
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

import plateaulens as pl
from plateaulens.papers.matrix_completion.experiments import EXPERIMENTS, ExperimentConfig, components
from plateaulens.papers.matrix_completion.recipes import SMALL_RECIPES

RECIPE = SMALL_RECIPES["matrix"]
UNIFORM = replace(RECIPE.task, factors="uniform")
SMALLER = {
    "3 x 3, rank 1, p_mask 0.2, batch 256, lr 2e-3": (replace(UNIFORM, rows=3, cols=3, p_mask=0.2), 256, 2e-3),
    "4 x 4, rank 1, p_mask 0.2, batch 256, lr 2e-3": (replace(UNIFORM, p_mask=0.2), 256, 2e-3),
    "4 x 4, rank 1, p_mask 0.3, batch 64, lr 3e-3": (UNIFORM, 64, 3e-3),
}


def inside(folder: Path, seeds: int) -> None:
    """Print the curves of all seeds, then what is inside each, on the plateau (step 2,000) and at the end."""
    runs = [trained(folder, seed) for seed in range(seeds)]
    write("The curves, 1024 held-out matrices", curves(runs))
    for run in runs:
        setting = ExperimentConfig.of(run, before=2000, n=2048, seed=7)
        for experiment in EXPERIMENTS.values():
            for shown in experiment(setting):
                write(f"Seed {run.path.name}: {shown.title}", shown.text)


def parts(folder: Path, seeds: int) -> None:
    """Print when single components of the first seed drop."""
    for shown in components(trained(folder, 0), folder / "components", steps=6000):
        write(shown.title, shown.text)


def smaller(folder: Path, seeds: int) -> None:
    """Print when smaller settings with uniform factors drop, and after how much time where they are trained now."""
    rows = {}
    for name, (task, size, lr) in SMALLER.items():
        recipe = replace(RECIPE, task=task, train=replace(RECIPE.train, batch_size=size, lr=lr))
        path, began = folder / "smaller" / name.replace(", ", "_").replace(" ", "-"), time.process_time()
        is_new = not path.exists()
        share = recipe.record(path, every=250, eval_batch=task.sample(1024, seed=1)).metrics.masked_loss / task.variance
        below = share.index[share < 0.5]
        drop = int(below[0]) if len(below) else None
        until = recipe.train.steps if drop is None else drop
        seconds = (time.process_time() - began) * until / recipe.train.steps  # updates take the same time each
        rows[name] = {"drop": str(drop), "least share": f"{share.min():.2f}", "seconds": f"{seconds:.0f}" * is_new}
    write("Uniform factors", pd.DataFrame(rows).T.to_string())


def trained(folder: Path, seed: int) -> pl.Run:
    """A run of the small setting."""
    eval_batch = RECIPE.task.sample(1024, seed=1)
    return RECIPE.record(folder / str(seed), seed=seed, eval_batch=eval_batch, every=50, save_every=500)


def curves(runs: list[pl.Run]) -> str:
    """A row a run: when its plateau ends, and the losses on it and at the end."""
    rows = {}
    for run in runs:
        plateau, metrics = pl.find_plateau(run), run.metrics
        rows[run.path.name] = {"loss leaves": str(plateau.end), "drop": str(plateau.drop)}
        for when, values in (("plateau", metrics.loc[1000:3000].median()), ("end", metrics.iloc[-1])):
            for name in ("loss", "observed_loss", "masked_loss", "masked_size"):
                rows[run.path.name][f"{name}, {when}"] = f"{values[name]:.4f}"
    return str(pd.DataFrame(rows).to_string())


def write(title: str, table: str) -> None:
    """A table under its title."""
    sys.stdout.write(f"{title}\n\n{table}\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--only", choices=("inside", "components", "smaller"), default="inside")
    asked = parser.parse_args()
    {"inside": inside, "components": parts, "smaller": smaller}[asked.only](asked.folder, asked.seeds)
