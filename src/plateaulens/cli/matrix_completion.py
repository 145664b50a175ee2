"""The command `plateaulens matrix`: experiments on runs of matrix completion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plateaulens.cli.base import Group, main, option

if TYPE_CHECKING:
    from plateaulens.report.sections import Section

DESCRIPTIONS = {  # of the experiments in `EXPERIMENTS`, which takes long to import
    "attention": "Attention of heads under random and structured masks.",
    "ablate": "Losses without heads, layers and groups of heads, by three modes of ablation.",
    "patch": "Predictions with attention outputs of X patched into the run on -X.",
    "swap": "Losses of the models before and after the drop with parts of each other's weights.",
    "copy": "Whether tokens that are put into masked cells are copied.",
    "probe": "Losses of linear probes at each cell after each layer.",
    "embeddings": "Norms and components of the embeddings of tokens and positions.",
    "permute": "Losses with the position embeddings in random orders.",
    "shift": "Losses for other shares of masked cells, ranks, sizes and factors, and of nuclear-norm minimization.",
}
run_argument = click.argument("run", type=click.Path(path_type=Path))


@main.group(cls=Group)
def matrix() -> None:
    """Run an experiment on a run of `plateaulens train matrix`.

    Prints tables and writes figures to RUN/matrix/EXPERIMENT.html.

    Example: plateaulens matrix ablate runs/matrix-0
    """


def _add_experiment(name: str, description: str) -> None:
    @matrix.command(name, help=f"{description}\n\nExample: plateaulens matrix {name} runs/matrix-0")
    @run_argument
    @option("--before", type=int, help="Saved step on the plateau.  [default: the last one on it]")
    @option("--after", type=int, help="Saved step after the drop.  [default: the last one]")
    @option("--n", type=click.IntRange(2), default=1024, help="Number of matrices.")
    @option("--seed", default=5, help="Seed of the matrices.")
    def command(run: Path, before: int | None, after: int | None, n: int, seed: int) -> None:
        from plateaulens.papers.matrix_completion.experiments import EXPERIMENTS, ExperimentConfig
        from plateaulens.runs.run import Run

        config = ExperimentConfig.of(Run(run), before=before, after=after, n=n, seed=seed)
        _write_results(name, run, EXPERIMENTS[name](config), config.steps | {"n": n, "seed": seed})


for _name, _description in DESCRIPTIONS.items():
    _add_experiment(_name, _description)


@matrix.command()
@run_argument
@option("--steps", type=click.IntRange(1), help="Steps of each training.  [default: those of RUN]")
@option("--only", multiple=True, metavar="NAME", help="Component to train; repeatable.  [default: all]")
@option("--seed", default=1, help="Seed of the component's initial weights and of the matrices; not that of RUN.")
@option("--out", type=click.Path(path_type=Path), help="Folder of the trainings.  [default: RUN/matrix/components]")
def components(run: Path, steps: int | None, only: tuple[str, ...], seed: int, out: Path | None) -> None:
    """Train single components of RUN from their initial weights, with all others fixed at its last step.

    NAME is one of "token embeddings", "position embeddings", mlp, attention and "all embeddings". Each training is a
    run in a folder of its name; finished ones are not repeated, interrupted ones are resumed.

    Example: plateaulens matrix components runs/matrix-0 --steps 6000 --only mlp --only attention
    """
    from plateaulens.papers.matrix_completion import experiments
    from plateaulens.papers.matrix_completion.component_training import COMPONENTS
    from plateaulens.runs.run import Run

    names = only or tuple(COMPONENTS)
    folder = out or run / "matrix" / "components"
    sections = experiments.components(Run(run), folder, names, steps=steps, seed=seed)
    options = {"steps": steps or "as many as the run", "only": ", ".join(names), "seed": seed}
    _write_results("components", run, sections, options)


def _write_results(experiment: str, run: Path, sections: "Sequence[Section]", options: Mapping[str, str | int]) -> None:
    from plateaulens.report.sections import write_sections

    for section in sections:
        click.echo(f"{section.title}\n{section.text}\n")
    provenance = {"run": str(run), "experiment": experiment, **{name: str(value) for name, value in options.items()}}
    page = run / "matrix" / f"{experiment}.html"
    click.echo(write_sections(page, f"{experiment} · {run.name}", sections, provenance))
