"""The tables of docs/matrix.md: `python docs/matrix.py runs/matrix 3` trains what is not there yet, then measures."""

import sys
from pathlib import Path

import matrix_circuits

import plateaulens as pl
from plateaulens.papers.matrices import RECIPES
from plateaulens.papers.matrix_experiments import EXPERIMENTS, Setting

NOTE = "{title}\n\n{table}\n\n"


def main(folder: str, seeds: str) -> None:
    """Print the curves of all seeds, then what is inside each."""
    recipe = RECIPES["matrix-small"]
    held, runs = recipe.task.sample(1024, seed=1), []
    for seed in range(int(seeds)):
        runs.append(recipe.record(Path(folder) / str(seed), seed=seed, held=held, every=50, save_every=500))
    write("The curves, 1024 held-out matrices.", curves(runs))
    for run in runs:
        write(f"Seed {run.path.name}: heads, parts, tokens.", matrix_circuits.tables(run))
        for name in ("probe", "embeddings", "permute", "shift"):
            for shown in EXPERIMENTS[name](Setting.of(run)):
                write(f"Seed {run.path.name}: {shown.title}.", shown.said)


def curves(runs: list[pl.Run]) -> str:
    """A row a run: when its plateau ends, and the losses on it and at the end."""
    rows = []
    for run in runs:
        plateau, metrics = pl.find_plateau(run), run.metrics
        on, last = metrics.loc[1000:3000].median(), metrics.iloc[-1]
        steps = [plateau.end, plateau.drop]
        losses = [x[name] for x in (on, last) for name in ("loss", "observed_loss", "masked_loss", "masked_size")]
        rows.append([run.path.name, *steps, *(f"{value:.4f}" for value in losses)])
    names = [f"{name}, {when}" for when in ("plateau", "end") for name in ("L", "L_obs", "L_mask", "size")]
    return matrix_circuits.markdown(["seed", "loss leaves", "drop", *names], rows)


def write(title: str, table: str) -> None:
    """A table under its title."""
    sys.stdout.write(NOTE.format(title=title, table=table))
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
