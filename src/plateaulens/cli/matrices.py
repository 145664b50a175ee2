"""The experiments on matrix completion: parse, call, print a path."""

from pathlib import Path

import click

from plateaulens.cli.base import main, option


@main.command()
@click.argument("experiment")
@click.argument("run", type=click.Path(path_type=Path))
@option("--before", type=int, help="A saved step on the plateau.  [default: the last one there]")
@option("--after", type=int, help="A saved step after the drop.  [default: the last one]")
@option("--n", type=click.IntRange(2), default=1024, help="Matrices.")
@option("--seed", default=5, help="Of the matrices.")
def matrix(experiment: str, run: Path, before: int | None, after: int | None, n: int, seed: int) -> None:
    """Look into a RUN of `plateaulens train matrix`.

    EXPERIMENT is one of attention (what heads look at, under three masks), ablate (heads taken out), patch (from X
    into -X), switch (parts exchanged across the drop), copy (tokens put into hidden cells), probe (what can be read
    at each cell), embeddings, permute (positions) and shift (other matrices, beside nuclear-norm minimisation).
    Tables are printed; RUN/matrix/EXPERIMENT.html has the figures.

    Example: plateaulens matrix ablate runs/matrix-0
    """
    import plateaulens as pl
    from plateaulens._lookup import look_up
    from plateaulens.papers.matrix_experiments import EXPERIMENTS, Setting
    from plateaulens.report.sections import write_sections

    call = look_up("experiment", experiment, EXPERIMENTS)
    opened = pl.Run(run)
    setting = Setting.of(opened, before, after, n, seed)
    sections = call(setting)
    for section in sections:
        click.echo(f"{section.title}\n{section.said}\n")
    asked = {"before": before, "after": after, "n": n, "seed": seed}
    provenance = {"run": str(run), "experiment": experiment, **{k: str(v) for k, v in asked.items()}}
    page = opened.path / "matrix" / f"{experiment}.html"
    click.echo(write_sections(page, f"{experiment} · {run.name}", sections, provenance))
