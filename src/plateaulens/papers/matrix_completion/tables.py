"""Tables of docs/matrix.md. Runs that do not exist yet are trained first.

python -m plateaulens.papers.matrix_completion.tables runs/matrix 3                     # experiments on three seeds
python -m plateaulens.papers.matrix_completion.tables runs/matrix 1 --only components   # single components of seed 0
python -m plateaulens.papers.matrix_completion.tables runs/matrix 1 --only smaller      # smaller, uniform factors
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pandas as pd

from plateaulens.analysis.plateau import find_plateau
from plateaulens.papers.matrix_completion.experiments import EXPERIMENTS, ExperimentConfig, components
from plateaulens.papers.matrix_completion.recipes import SMALL_RECIPES
from plateaulens.runs.run import Run
from plateaulens.tasks import MatrixCompletion

RECIPE = SMALL_RECIPES["matrix"]
UNIFORM = replace(cast(MatrixCompletion, RECIPE.task), factors="uniform")
SMALLER_TASKS: dict[str, tuple[MatrixCompletion, int, float]] = {  # name -> task, batch size, learning rate
    "3 x 3, rank 1, p_mask 0.2, batch 256, lr 2e-3": (replace(UNIFORM, rows=3, cols=3, p_mask=0.2), 256, 2e-3),
    "4 x 4, rank 1, p_mask 0.2, batch 256, lr 2e-3": (replace(UNIFORM, p_mask=0.2), 256, 2e-3),
    "4 x 4, rank 1, p_mask 0.3, batch 64, lr 3e-3": (UNIFORM, 64, 3e-3),
}


def write_experiments(folder: Path, seeds: int) -> None:
    """Write the losses of all seeds, then all experiments on each seed at steps 2,000 (the plateau) and 10,000."""
    runs = [trained(folder, seed) for seed in range(seeds)]
    write("Losses, 1024 evaluation matrices", losses(runs))
    for run in runs:
        config = ExperimentConfig.of(run, before=2000, n=2048, seed=7)
        for experiment in EXPERIMENTS.values():
            for section in experiment(config):
                write(f"Seed {run.path.name}: {section.title}", section.text)


def write_components(folder: Path, seeds: int) -> None:
    """Write the steps at which trainings of single components of seed 0 drop; `seeds` is not used."""
    for section in components(trained(folder, 0), folder / "components", steps=6000):
        write(section.title, section.text)


def write_smaller(folder: Path, seeds: int) -> None:
    """Write the steps at which smaller tasks drop, and the CPU time if they are trained now; `seeds` is not used."""
    rows = {}
    for name, (task, batch_size, lr) in SMALLER_TASKS.items():
        recipe = replace(RECIPE, task=task, train=replace(RECIPE.train, batch_size=batch_size, lr=lr))
        path, start = folder / "smaller" / name.replace(", ", "_").replace(" ", "-"), time.process_time()
        is_new, eval_batch = not path.exists(), task.sample(1024, seed=1)
        share = recipe.record(path, every=250, eval_batch=eval_batch).metrics.masked_loss / task.variance
        below = share.index[share < 0.5]
        drop = int(below[0]) if len(below) else None
        seconds = (time.process_time() - start) * (drop or recipe.train.steps) / recipe.train.steps
        rows[name] = {"drop": str(drop), "least share": f"{share.min():.2f}", "seconds": f"{seconds:.0f}" * is_new}
    write("Uniform factors", pd.DataFrame(rows).T.to_string())


def trained(folder: Path, seed: int) -> Run:
    """The run of the small recipe with a seed, trained if needed."""
    eval_batch = RECIPE.task.sample(1024, seed=1)
    return RECIPE.record(folder / str(seed), seed=seed, eval_batch=eval_batch, every=50, save_every=500)


def losses(runs: list[Run]) -> str:
    """Table of the plateau's end and drop, and of losses on the plateau and at the end, by run."""
    columns = {}
    for run in runs:
        plateau, metrics = find_plateau(run), run.metrics
        column = {"loss leaves": str(plateau.end), "drop": str(plateau.drop)}
        for when, values in (("plateau", metrics.loc[1000:3000].median()), ("end", metrics.iloc[-1])):
            for name in ("loss", "observed_loss", "masked_loss", "masked_size"):
                column[f"{name}, {when}"] = f"{values[name]:.4f}"
        columns[run.path.name] = column
    return str(pd.DataFrame(columns).to_string())


def write(title: str, table: str) -> None:
    """Write a table below its title."""
    sys.stdout.write(f"{title}\n\n{table}\n\n")
    sys.stdout.flush()


WRITERS = {"experiments": write_experiments, "components": write_components, "smaller": write_smaller}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("seeds", type=int, help="number of seeds")
    parser.add_argument("--only", choices=WRITERS, default="experiments")
    options = parser.parse_args()
    WRITERS[options.only](options.folder, options.seeds)
