"""Training, its reports and the reproductions of papers from the command line."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from plateaulens.cli.base import Group, main, option, require_device
from plateaulens.cli.task_options import MODEL_OPTIONS, TRAIN_OPTIONS, field_options, field_texts

SUMMARIES = {  # the names of `TASKS`, whose import would load torch
    "mws": "Moving-window sum: each answer is the sum of the last k numbers, modulo p.",
    "mix": "Window sums of several widths, one segment after another.",
    "prefix": "Prefix sum: each answer is the sum of all numbers so far, modulo p.",
    "addition": "Addition of two decimal numbers of n digits.",
    "permutation": "Values in the order of a permutation that is part of the prompt.",
    "histogram": "How often each number occurs in the prompt.",
    "copy": "The numbers of the prompt, copied.",
    "reverse": "The numbers of the prompt in reverse order.",
    "repeat": "Parts of the answer that repeat one number.",
    "binary-addition": "Addition of two binary numbers.",
    "multiplication": "Multiplication of two binary numbers.",
    "majority": "Majority of the majorities of groups of bits.",
    "subarray": "The contiguous subarray with the largest sum.",
    "activities": "The activities that the greedy algorithm selects, none of which overlap.",
    "bfs": "Order in which a breadth-first search visits the nodes of a graph.",
    "dfs": "Order in which a depth-first search visits the nodes of a graph.",
    "path": "A shortest path between two nodes of a graph.",
    "topological": "Topological order of a directed graph.",
    "mst": "The spanning tree of a graph by Kruskal's algorithm.",
    "matrix": "Completion of low-rank matrices of one size.",
    "matrix-mixture": "Completion of square low-rank matrices of several sizes.",
    "matrix-sequence": "Matrix completion as next-token prediction by a decoder.",
}
COMMON_OPTIONS = [
    click.Option(["--seed"], default=0, show_default=True, help="Seed of the initial weights and of the data."),
    click.Option(["--out"], type=click.Path(path_type=Path), help="Run folder.  [default: runs/TASK-SEED]"),
    click.Option(["--overwrite"], is_flag=True, help="Rename an existing run folder instead of refusing it."),
    click.Option(["--small"], is_flag=True, help="Use a shorter task and a smaller model: minutes on a CPU."),
    click.Option(["--device"], default="cpu", show_default=True, help="Device to train on: cpu, cuda or mps."),
    click.Option(
        ["--metrics"],
        multiple=True,
        metavar="NAMES",
        help="Names of the metrics to record, separated by commas; repeatable.  [default: those of the task]",
    ),
    click.Option(["--every"], default=5, show_default=True, help="Number of steps between two measurements."),
    click.Option(["--save-every"], default=50, show_default=True, help="Number of steps between two checkpoints."),
    click.Option(
        ["--eval-size"],
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Number of examples in the evaluation batch.",
    ),
]
INTERVENTION_OPTIONS = [
    click.Option(["--scale-attention"], type=float, help="Factor on the attention at the task's optimal positions."),
    click.Option(
        ["--from-step"],
        default=0,
        show_default=True,
        help="First step of --scale-attention; the steps before it are a run of their own, OUT-past.",
    ),
    click.Option(
        ["--freeze"],
        multiple=True,
        metavar="PART",
        help="Part of the model that is not trained: attn, mlp, embed, KQ, ...; repeatable.",
    ),
    click.Option(
        ["--from", "donor"],
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Run whose last checkpoint gives the frozen parts their weights.",
    ),
]


class TaskCommand(click.Command):
    """`plateaulens train TASK`.

    The options are made when they are first needed, so that listing the tasks loads no torch.
    """

    sections: dict[str, list[click.Option]] = {}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options of the task, its model, its training and its recording."""
        if not self.params:
            self.sections = _sections(str(self.name))
            self.params = [parameter for section in self.sections.values() for parameter in section]
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options; the error for an option of other tasks names these."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from plateaulens.tasks import TASKS

            field = error.option_name.lstrip("-").replace("-", "_")
            owners = [name for name, cls in TASKS.items() if field in field_texts(cls)]
            if not owners:
                raise
            option_name, those = error.option_name, ", ".join(owners)
            raise click.UsageError(f"{self.name} has no option {option_name}; it is an option of {those}") from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in sections, then an example of the task."""
        self.get_params(ctx)
        for title, options in (self.sections | {"Help": [self.get_help_option(ctx)]}).items():
            if records := [record for option in options if option and (record := option.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(records)
        example = _recipe(str(self.name), small=True).task.example()
        with formatter.section("An example of a small size"):
            formatter.write("".join(f"  {line}\n" for line in example.splitlines()))


class TaskGroup(Group):
    """The group of `plateaulens train`, with a command for each task."""

    kind = "task"

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The tasks in the order of the papers."""
        return list(self.commands)


@main.group(cls=TaskGroup)
def train() -> None:
    """Train a transformer on a task, record its metrics and write a report.

    `plateaulens train TASK --help` shows the options of a task.

    Example: plateaulens train mws --steps 400 --seed 0 --out runs/mws-0
    """


def _sections(name: str) -> dict[str, list[click.Option]]:
    """The options of a task by the heading under which its help shows them."""
    recipe, small = _recipe(name), _recipe(name, small=True)
    task = type(recipe.task)
    models = recipe.model_config(), small.model_config()
    known_attention = recipe.task.optimal_attention(recipe.task.sample(1, seed=0)) is not None
    hidden = set() if known_attention else {"scale_attention", "from_step"}
    hidden |= {"small"} if small == recipe else set()
    return {
        "Task": field_options(task, "task", field_texts(task), recipe.task, small.task),
        "Model": field_options(type(models[0]), "model", MODEL_OPTIONS, *models),
        "Training": field_options(type(recipe.train), "train", TRAIN_OPTIONS, recipe.train, small.train),
        "Interventions": [option for option in INTERVENTION_OPTIONS if option.name not in hidden],
        "Run": [option for option in COMMON_OPTIONS if option.name not in hidden],
    }


def _recipe(name: str, *, small: bool = False) -> Any:
    """The recipe of a task at the size of its paper, or at that of a laptop."""
    from plateaulens.papers.abrupt_learning import recipes as abrupt
    from plateaulens.papers.matrix_completion import recipes as matrices
    from plateaulens.papers.quiet_features import recipes as quiet

    tables = [paper.SMALL_RECIPES if small else paper.RECIPES for paper in (abrupt, quiet, matrices)]
    return next(table[name] for table in tables if name in table)


def _chosen_recipe(name: str, options: dict[str, Any]) -> Any:
    """The recipe of a task with the values that were given on the command line."""
    from plateaulens.papers.quiet_features import recipes as quiet

    def given(prefix: str) -> dict[str, Any]:
        start = f"{prefix}_"
        return {k.removeprefix(start): v for k, v in options.items() if k.startswith(start) and v is not None}

    recipe = _recipe(name, small=options.get("small", False))
    learning, schedule = given("train"), recipe.train
    if name in quiet.RECIPES and "steps" in learning:  # its warm-up is a share of the steps
        schedule = quiet.schedule(learning["steps"], schedule.lr, schedule.batch_size)
    return replace(
        recipe,
        task=replace(recipe.task, **given("task")),
        train=replace(schedule, **learning),
        model=recipe.model | given("model"),
        scale=options.get("scale_attention"),
        from_step=options.get("from_step", 0),
        frozen=options["freeze"],
        optimal=options["donor"] is not None,
    )


def _train(name: str, **options: Any) -> None:
    """Train the task `name` with the options of its command."""
    import plateaulens as pl

    recipe = _chosen_recipe(name, options)
    seed, device, donor = options["seed"], options["device"], options["donor"]
    require_device(device)
    folder = options["out"] or Path("runs") / f"{name}-{seed}"
    if (folder / "run.json").is_file() and not options["overwrite"]:
        raise FileExistsError(
            f"{folder} holds a run; `plateaulens resume {folder}` continues it, or give --overwrite or another --out"
        )
    metrics = [metric.strip() for names in options["metrics"] for metric in names.split(",")]
    _finish(
        folder,
        lambda: recipe.record(
            folder,
            seed=seed,
            donor=None if donor is None else pl.Run(donor),
            device=device,
            eval_batch=recipe.task.sample(options["eval_size"], seed=1, device=device),
            metrics=metrics or None,
            every=options["every"],
            save_every=options["save_every"],
            overwrite=options["overwrite"],
        ),
    )


for _name, _summary in SUMMARIES.items():
    train.add_command(
        TaskCommand(
            _name,
            callback=partial(_train, _name),
            short_help=_summary,
            help=f"{_summary}\n\n\b\nExample: plateaulens train {_name} --seed 0 --out runs/{_name}-0",
        )
    )


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--device", help="Device to train on: cpu, cuda or mps.  [default: the one it started on]")
def resume(run: Path, device: str | None) -> None:
    """Continue RUN from its newest saved state; the result is byte for byte that of an uninterrupted run.

    Example: plateaulens resume runs/mws-0
    """
    import plateaulens as pl

    require_device(device or pl.Run(run).config["device"])
    _finish(run, lambda: pl.resume(run, device=device))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
def report(runs: tuple[Path, ...]) -> None:
    """Write report.html into each of RUNS.

    Example: plateaulens report runs/mws-0 runs/mws-1
    """
    import plateaulens as pl

    for run in [pl.Run(path) for path in runs]:
        click.echo(_write_report(run))


@main.command()
@click.argument("names", nargs=-1)
@option("--out", default="runs/plateau", type=click.Path(path_type=Path), help="Folder in which the runs are stored.")
@option("--seeds", default=3, help="Number of seeds for each recipe: 0, 1, ...")
@option("--small", is_flag=True, help="Use shorter tasks and smaller models: minutes on a laptop instead of hours.")
@option("--device", default="cpu", help="Device to train on: cpu, cuda or mps.")
def reproduce(names: tuple[str, ...], out: Path, seeds: int, small: bool, device: str) -> None:
    """Train recipes of arXiv 2506.13688 with their reports: all tasks, or the recipes NAMES.

    Finished runs are kept and stopped ones continue, so the same command can be given again.

    Example: plateaulens reproduce copy reverse --small --seeds 2 --out runs/plateau
    """
    from plateaulens.papers.abrupt_learning import recipes
    from plateaulens.report import headline, plateau_of

    require_device(device)
    try:
        for name, run in recipes.reproduce(names, out, seeds=seeds, small=small, device=device):
            click.echo(f"{name}: " + ", ".join(f"{k} {v}" for k, v in headline(run, plateau_of(run)).items()))
            click.echo(_write_report(run))
    except KeyboardInterrupt:
        click.echo("stopped; give the same command again to continue", err=True)
        sys.exit(130)


@main.command()
def tasks() -> None:
    """List every task with an example of a prompt and its answer.

    Example: plateaulens tasks
    """
    from plateaulens.tasks import TASKS

    for name, cls in TASKS.items():
        click.echo(f"{name}: {SUMMARIES[name]}")
        click.echo("\n".join(f"    {line}" for line in cls().example().splitlines()) + "\n")


def _finish(folder: Path, run: Callable[[], Any]) -> None:
    """Train, print the headline and write the report; after Ctrl-C, print how to continue."""
    from plateaulens.report import headline, plateau_of

    try:
        finished = run()
    except KeyboardInterrupt:
        click.echo(f"stopped; continue with: plateaulens resume {folder}", err=True)
        sys.exit(130)
    for name, value in headline(finished, plateau_of(finished)).items():
        click.echo(f"{name:>16}  {value}")
    click.echo(_write_report(finished))


def _write_report(run: Any) -> Path:
    """Write the report of a run, with the sections that its paper adds."""
    import plateaulens as pl
    from plateaulens.papers.matrix_completion.report import report_sections

    return pl.write_report(run, sections=report_sections(run))
