"""The experiments on matrix completion: parse, call, print a path."""

from pathlib import Path
from typing import Any

import click

from plateaulens.cli.base import Group, main, option

ABOUT = {  # the names of `EXPERIMENTS`, which are not imported to parse
    "attention": "What heads look at, under random and structured masks.",
    "ablate": "Heads, layers and groups of heads taken out, in three modes.",
    "patch": "Attention outputs of X put into the run on -X.",
    "switch": "Parts exchanged between the model before the drop and the one after it.",
    "copy": "Tokens put into hidden cells, and whether they are copied.",
    "probe": "What linear probes read at each cell.",
    "embeddings": "Norms and components of the embeddings of tokens and positions.",
    "permute": "Losses with the position embeddings in another order.",
    "shift": "Other shares of hidden cells, ranks, sizes and factors, beside nuclear-norm minimization.",
}
a_run = click.argument("run", type=click.Path(path_type=Path))


@main.group(cls=Group)
def matrix() -> None:
    """Look into a run of `plateaulens train matrix`.

    Tables are printed; RUN/matrix/EXPERIMENT.html has the figures.

    Example: plateaulens matrix ablate runs/matrix-0
    """


def _add(name: str, about: str) -> None:
    @matrix.command(name, help=f"{about}\n\nExample: plateaulens matrix {name} runs/matrix-0")
    @a_run
    @option("--before", type=int, help="A saved step on the plateau.  [default: the last one there]")
    @option("--after", type=int, help="A saved step after the drop.  [default: the last one]")
    @option("--n", type=click.IntRange(2), default=1024, help="Matrices.")
    @option("--seed", default=5, help="Of the matrices.")
    def command(run: Path, before: int | None, after: int | None, n: int, seed: int) -> None:
        import plateaulens as pl
        from plateaulens.papers.matrix_completion.experiments import EXPERIMENTS, ExperimentConfig

        setting = ExperimentConfig.of(pl.Run(run), before, after, n, seed)
        _show(name, run, EXPERIMENTS[name](setting), setting.steps | {"n": n, "seed": seed})


for _name, _about in ABOUT.items():
    _add(_name, _about)


@matrix.command()
@a_run
@option("--steps", type=click.IntRange(1), help="Of each training.  [default: as many as RUN]")
@option("--only", multiple=True, metavar="NAME", help="Repeatable.  [default: all of them]")
@option("--seed", default=1, help="Of the component's initial weights and of the matrices; not RUN's own.")
@option("--out", type=click.Path(path_type=Path), help="Of the trainings.  [default: RUN/matrix/components]")
def components(run: Path, steps: int | None, only: tuple[str, ...], seed: int, out: Path | None) -> None:
    """Train one component anew, all others fixed as RUN's last step has them.

    NAME is one of "token embeddings", "position embeddings", mlp, attention and "all embeddings". Each training is a
    run of its own in a folder of its name; one that is there is not trained again, one that was stopped goes on.

    Example: plateaulens matrix components runs/matrix-0 --steps 6000 --only mlp --only attention
    """
    import plateaulens as pl
    from plateaulens.papers.matrix_completion.experiments import components as trained
    from plateaulens.papers.matrix_completion.recipes import COMPONENTS

    out = out or run / "matrix" / "components"
    names = only or tuple(COMPONENTS)
    sections = trained(pl.Run(run), out, names, steps=steps, seed=seed)
    _show("components", run, sections, {"steps": steps or "as many as the run", "only": ", ".join(names), "seed": seed})


def _show(experiment: str, run: Path, sections: Any, asked: dict[str, Any]) -> None:
    from plateaulens.report.sections import write_sections

    for section in sections:
        click.echo(f"{section.title}\n{section.text}\n")
    provenance = {"run": str(run), "experiment": experiment, **{name: str(value) for name, value in asked.items()}}
    page = run / "matrix" / f"{experiment}.html"
    click.echo(write_sections(page, f"{experiment} · {run.name}", sections, provenance))
