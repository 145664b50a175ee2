"""Training and reproducing: parse, call, print a path."""

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from plateaulens.cli.base import given_values, main, option, usable

TASK_OPTIONS = (
    *("n", "k", "p", "max_value", "mix", "compose", "no_repeat", "reverse"),
    *("bits", "groups", "length", "largest", "nodes", "answer_only"),
    *("rows", "cols", "rank", "p_mask", "mask", "factors", "precision", "limit"),
)
TRAIN_OPTIONS = (
    *("steps", "batch_size", "lr", "optimizer", "momentum", "adam_lr", "schedule", "warmup", "decay"),
    *("weight_decay", "grad_clip"),
)


@main.command()
@click.argument("task")
@option("--steps", type=int, help="Optimizer updates.  [default: the paper's, 400 for mws]")
@option("--seed", default=0, help="Of the initial weights and of the data.")
@option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/TASK-SEED]")
@option("--overwrite", is_flag=True, help="Rename a folder that is in the way.")
@option("--small", is_flag=True, help="The quick setting: a shorter task, d_model 64, batch 64, lr 1e-3.")
@option("--n", type=int, help="Prompt numbers of the task; digits of addition.")
@option("--k", type=int, help="Window of mws; parts of repeat.")
@option("--p", type=int, help="Modulus of mws, mix, prefix and repeat.")
@option("--max-value", type=int, help="Largest number of copy, reverse and histogram.")
@option("--mix", help="Segments of mix: 123_disjoint_454, 124_stair_653, ...")
@option("--compose", type=int, help="How often permutation is applied.")
@option("--no-repeat", is_flag=True, default=None, help="Draw the numbers of prefix without replacement.")
@option("--reverse/--no-reverse", default=None, help="Digit order of addition's answer.")
@option("--bits", type=int, help="Of binary-addition (or addition, which it makes binary), multiplication, majority.")
@option("--groups", type=int, help="Of majority.")
@option("--length", type=int, help="Of subarray.")
@option("--largest", type=int, help="Number of subarray.")
@option("--nodes", type=int, help="Of bfs, dfs, path, topological and mst.")
@option("--answer-only", is_flag=True, default=None, help="Do not score the `=` of those from binary-addition on.")
@option("--rows", type=int, help="Of matrix.")
@option("--cols", type=int, help="Of matrix.")
@option("--rank", type=int, help="Of matrix.")
@option("--p-mask", type=float, help="Probability that a cell of matrix is hidden.")
@option("--mask", help="What of matrix is hidden: random, row, column or block.")
@option("--factors", help="Distribution of matrix: uniform, gaussian, laplace, signs or bounded.")
@option("--precision", type=float, help="To which entries of matrix are rounded.")
@option("--limit", type=float, help="Largest entry of matrix that has a token.")
@option("--attention", help="linear or softmax.  [default: linear]")
@option("--layers", "n_layers", type=int, help="[default: what the task needs]")
@option("--heads", "n_heads", type=int, help="[default: 1]")
@option("--d-model", type=int, help="Width.  [default: 256]")
@option("--init-scale", type=float, help="Factor on all initial weights.  [default: 1]")
@option("--batch-size", type=int, help="Sequences an update.  [default: 256]")
@option("--lr", type=float, help="Learning rate.  [default: 1e-4]")
@option("--optimizer", help="adam, adamw, sgd or muon.  [default: adam]")
@option("--momentum", type=float, help="Of sgd and muon.  [default: 0, 0.95]")
@option("--adam-lr", type=float, help="Of what muon leaves to AdamW.  [default: 1e-4]")
@option("--schedule", help="constant, cosine or wsd.  [default: constant]")
@option("--warmup", type=int, help="Updates with a rising learning rate.  [default: 0]")
@option("--decay", type=int, help="Last updates of wsd, with a falling learning rate.  [default: 0]")
@option("--weight-decay", type=float, help="[default: 0]")
@option("--grad-clip", type=float, help="Largest global gradient norm.")
@option("--scale-attention", "scale", type=float, help="Factor on attention on the task's optimal map.")
@option("--from-step", default=0, help="From which step on attention is scaled; the steps before go to OUT-past.")
@option("--freeze", "frozen", multiple=True, help="A part that does not learn: attn, mlp, embed, KQ, ... Repeatable.")
@option("--from", "donor", type=click.Path(path_type=Path), help="The frozen parts are those of this run's last step.")
@option("--every", default=5, help="Measure every so many steps.")
@option("--save-every", default=50, help="Save weights and state every so many steps.")
@option("--eval-size", default=256, help="Held-out prompts.")
@option("--device", default="cpu", help="cpu, cuda or mps.")
def train(
    task: str,
    seed: int,
    out: Path | None,
    overwrite: bool,
    small: bool,
    every: int,
    save_every: int,
    eval_size: int,
    device: str,
    scale: float | None,
    from_step: int,
    frozen: tuple[str, ...],
    donor: Path | None,
    **given: Any,
) -> None:
    """Train a transformer on TASK, measure it, and write a report.

    Example: plateaulens train mws --steps 400 --seed 0 --out runs/mws-0
    """
    import plateaulens as pl
    from plateaulens._registry import build, look_up
    from plateaulens.papers.abrupt_learning import recipes as plateau
    from plateaulens.papers.matrix_completion import recipes as matrices
    from plateaulens.papers.quiet_features import recipes as quiet

    abrupt, *others = (papers.SMALL_RECIPES if small else papers.RECIPES for papers in (plateau, quiet, matrices))
    known = {name: abrupt[name] for name in plateau.GROUPS["tasks"]} | others[0] | others[1]
    task = "binary-addition" if task == "addition" and given["bits"] is not None else task
    recipe = look_up("task", task, known)
    values = given_values(given)
    learner = build(type(recipe.task), {**asdict(recipe.task), **_take(values, TASK_OPTIONS)}, f"task {task!r}")
    learning, schedule = _take(values, TRAIN_OPTIONS), recipe.train
    if task in quiet.RECIPES and "steps" in learning:  # its warm-up is a share of the steps
        schedule = quiet.schedule(learning["steps"], schedule.lr, schedule.batch_size)
    recipe = replace(
        recipe,
        task=learner,
        train=replace(schedule, **learning),
        model={**recipe.model, **values},
        scale=scale,
        from_step=from_step,
        frozen=frozen,
        optimal=donor is not None,
    )
    if eval_size < 1:
        raise ValueError(f"--eval-size needs at least 1 prompt, got {eval_size}")
    usable(device)
    folder = out or Path("runs") / f"{task}-{seed}"
    if (folder / "run.json").is_file() and not overwrite:
        raise FileExistsError(f"{folder} holds a run; `plateaulens resume {folder}`, --overwrite, or another --out")
    _finish(
        folder,
        lambda: recipe.record(
            folder,
            seed=seed,
            donor=None if donor is None else pl.Run(donor),
            device=device,
            eval_batch=learner.sample(eval_size, seed=1, device=device),
            every=every,
            save_every=save_every,
            overwrite=overwrite,
        ),
    )


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--device", help="cpu, cuda or mps.  [default: where it began]")
def resume(run: Path, device: str | None) -> None:
    """Finish RUN from its newest exact state, to the bytes of a run that was never cut off.

    Example: plateaulens resume runs/mws-0
    """
    import plateaulens as pl

    usable(device or pl.Run(run).config["device"])
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
@option("--out", default="runs/plateau", type=click.Path(path_type=Path), help="Folder of the runs.")
@option("--seeds", default=3, help="Seeds 0, 1, ... of each.")
@option("--small", is_flag=True, help="The small settings: minutes on a laptop instead of hours.")
@option("--device", default="cpu", help="cpu, cuda or mps.")
def reproduce(names: tuple[str, ...], out: Path, seeds: int, small: bool, device: str) -> None:
    """Train the tasks of arXiv 2506.13688 (all, or those of NAMES) with their reports; call again to go on.

    Example: plateaulens reproduce copy reverse --small --seeds 2 --out runs/plateau
    """
    from plateaulens.papers.abrupt_learning import recipes as plateau
    from plateaulens.report import headline, plateau_of

    usable(device)
    try:
        for name, run in plateau.reproduce(names, out, seeds=seeds, small=small, device=device):
            click.echo(f"{name}: " + ", ".join(f"{k} {v}" for k, v in headline(run, plateau_of(run)).items()))
            click.echo(_write_report(run))
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on", err=True)
        sys.exit(130)


@main.command()
def tasks() -> None:
    """List every task with an example.

    Example: plateaulens tasks
    """
    import inspect

    from plateaulens.tasks import TASKS

    for name, cls in TASKS.items():
        click.echo(f"{name}: {inspect.getdoc(cls).splitlines()[0]}")  # type: ignore[union-attr]
        click.echo("\n".join(f"    {line}" for line in cls().example().splitlines()) + "\n")


def _finish(folder: Path, run: Callable[[], Any]) -> None:
    """Train, then report; Ctrl-C says how to go on."""
    from plateaulens.report import headline, plateau_of

    try:
        done = run()
    except KeyboardInterrupt:
        click.echo(f"stopped; go on with: plateaulens resume {folder}", err=True)
        sys.exit(130)
    for name, value in headline(done, plateau_of(done)).items():
        click.echo(f"{name:>16}  {value}")
    click.echo(_write_report(done))


def _take(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Remove `names` from `values` and return what was there."""
    return {name: values.pop(name) for name in names if name in values}


def _write_report(run: Any) -> Path:
    """Write the report of a run, with what its paper adds."""
    import plateaulens as pl
    from plateaulens.papers.matrix_completion.report import report_sections

    return pl.write_report(run, sections=report_sections(run))
