"""Probing and ablating the features of a run's task: parse, call, print a path."""

import re
import sys
from functools import partial
from math import isinf, isnan
from pathlib import Path
from typing import Any, NoReturn

import click

from plateaulens.cli.base import main, option
from plateaulens.cli.checkpoints import select_steps

QUICK = 1000  # values of all visible tokens together, up to which a probe of them takes seconds
FEWEST = 20  # sequences, of which 12 train a probe, 2 choose its C and 6 test it


class Positive(click.FloatRange):
    """Numbers above 0. NaN is none, and passes every range, since it compares to nothing."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        return self.fail(f"{value} is not in the range x>0.", param, ctx) if isnan(found) else found


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--feature", "features", multiple=True, help="Feature of the task to probe, such as carry; repeatable.")
@option("--steps", help="Steps to probe, as 0,100,200 or 0-400.  [default: all saved steps]")
@option(
    "--site",
    "sites",
    multiple=True,
    default=["blocks.*.hook_resid_post"],
    help="Hook name or glob to read; repeatable.",
)
@option(
    "--n",
    type=click.IntRange(FEWEST),
    default=1500,
    help="Number of sequences: six tenths train, one chooses C, three test.",
)
@option("--seed", type=click.IntRange(0), default=2, help="Seed of the sequences and of their split.")
@option(
    "--C", "C", type=Positive(), multiple=True, default=[1.0, 100.0], help="Inverse penalty to choose from; repeatable."
)
@option("--pooled", is_flag=True, help="Fit one probe per site for all positions of the feature.")
@option("--tokens/--no-tokens", default=None, help="Probe the visible tokens, too.  [default: if that takes seconds]")
@option("--plateau", help="First and last step of the plateau, as 100-200.  [default: by the analytic loss level]")
def probe(
    run: Path,
    features: tuple[str, ...],
    steps: str | None,
    sites: tuple[str, ...],
    n: int,
    tokens: bool | None,
    plateau: str | None,
    **how: Any,
) -> None:
    """Ask when features of RUN's task can be read, by linear probes at every saved step, and whether they are quiet.

    What is found goes to RUN/probes/FEATURE.nc with a page beside it, in place of what was there; `plateaulens report
    RUN` shows it with the rest.

    Example: plateaulens probe runs/addition --feature carry
    """
    import plateaulens as pl
    from plateaulens._signals import defer_sigint
    from plateaulens.report.probe_results import keep_probes, probes_text

    opened = pl.Run(run)
    batch = _sampled(opened, n, how["seed"])
    for feature in features or [""]:
        _known(batch, feature)
    chosen = _steps(opened, steps)
    span = None if plateau is None else _span(plateau)
    tokens = batch.inputs.shape[1] * batch.task.d_vocab <= QUICK if tokens is None else tokens
    done: list[str] = []
    try:
        for feature in features:
            over = pl.probe_checkpoints(opened, batch, feature, list(sites), steps=chosen, shuffled=False, **how)
            over.attrs = {"feature": feature} | ({} if span is None else {"plateau": span})
            if tokens:
                click.echo(f"probing the visible tokens for {feature}, without a model", err=True)
                over.attrs["tokens"] = (
                    pl.probing.probe_tokens(batch, feature, C=how["C"], seed=how["seed"]).thirds().loss.values
                )
            with defer_sigint():  # or else a file may be there of what is said to be lost
                page = keep_probes(opened, over, steps=chosen, sites=" ".join(sites), n=n, **how)
                done.append(feature)
            click.echo(_table(opened, over))
            click.echo(probes_text(opened, over))
            click.echo(page)
    except KeyboardInterrupt:
        kept, rest = (", ".join(part) or "nothing" for part in (done, features[len(done) :]))
        _stopped(f"kept in {run / 'probes'}: {kept}; to start anew: {rest}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@option("--feature", default="", help="Feature of the task to ablate, such as carry.")
@option(
    "--method", default="hyperplane", help="Method of removal: hyperplane (the paper's), nullspace or mean_difference."
)
@option("--step", type=int, help="Step of the model.  [default: the last saved one]")
@option("--site", help="Hook name to edit.  [default: at each position, the site of the best probe]")
@option("--below", type=int, help="Edit only layers below this one.")
@option("--n", type=click.IntRange(1), default=256, help="Number of sequences to test on.")
@option(
    "--train",
    "n_train",
    type=click.IntRange(FEWEST),
    default=1500,
    help="Number of sequences to fit directions to; seven tenths of them choose the layers.",
)
@option("--draws", type=click.IntRange(1), default=32, help="Number of random draws of each control.")
@option(
    "--control",
    "controls",
    multiple=True,
    help="Control: gaussian, shuffled, variance or orthogonal; repeatable.  [default: all that fit]",
)
@option("--C", "C", type=Positive(), default=100.0, help="Inverse penalty of the probes; 100 is the paper's.")
@option("--k", type=click.IntRange(1), default=8, help="Number of rounds of nullspace.")
@option(
    "--seed",
    type=click.IntRange(0),
    default=2,
    help="Seed of the fitted sequences and of the controls; the tested sequences have seed + 1.",
)
def ablate(
    run: Path,
    feature: str,
    method: str,
    step: int | None,
    site: str | None,
    below: int | None,
    n: int,
    n_train: int,
    C: float,
    seed: int,
    **how: Any,
) -> None:
    """Take a feature of RUN's task out of a trained model, and compare with taking out other directions.

    What is found goes to RUN/ablations/FEATURE-METHOD-STEP.nc with a page beside it, in place of what was there;
    `plateaulens report RUN` shows it with the rest.

    Example: plateaulens ablate runs/addition --feature carry --method mean_difference
    """
    import plateaulens as pl
    from plateaulens._registry import look_up
    from plateaulens.probing.ablation import OffsetProbes
    from plateaulens.probing.edit_directions import CONTROLS, METHODS
    from plateaulens.probing.fitting import fit_logistic
    from plateaulens.report.probe_results import ablation_text, keep_ablation

    opened = pl.Run(run)
    train = _sampled(opened, n_train, seed)
    kind = _known(train, feature)
    look_up("method", method, METHODS)
    for control in how["controls"]:
        look_up("control", control, CONTROLS)
    if kind not in ("binary", "labels") and method != "mean_difference":
        raise ValueError(f"{method} is for labels of 0 and 1, and {feature} is {kind}; --method mean_difference")
    if site is not None and below is not None:
        raise ValueError("--below chooses among the layers, and --site has chosen; give one of them")
    if isinf(C):
        raise ValueError("--C inf leaves labels that a line separates without an optimum; try 1e4")
    step = _steps(opened, None)[-1] if step is None else step
    model, test = opened.model(step), opened.task.sample(n, seed=seed + 1)  # type: ignore[union-attr]
    if site is not None:
        _one_state(model, test, site)
    try:
        click.echo(f"fitting the directions of {feature} to {n_train} sequences", err=True)
        where: Any = site
        if site is None:  # its probes left sequences out to be tested on, and only say where
            where = OffsetProbes.best(pl.probe(model, train, feature, C=C, shuffled=False, seed=seed), below).sites
        options = {"method": method, "train": train, "fit": partial(fit_logistic, C=C), "seed": seed, **how}
        options |= {"controls": how["controls"] or None}
        found = pl.ablate_feature(model, test, feature, sites=where, **options)
    except KeyboardInterrupt:
        _stopped("nothing of it was kept")
    how["controls"] = tuple(map(str, found.values.control.values))  # those that were drawn
    page = keep_ablation(opened, found, step, n=n, train=n_train, seed=seed, C=C, below=below, site=site, **how)
    click.echo(repr(found))
    click.echo(ablation_text(found.table))
    click.echo(page)


def _sampled(run: Any, n: int, seed: int) -> Any:
    """Fresh sequences of the run's task, which must have features."""
    if run.task is None:
        raise ValueError(f"{run.path} trained a task of your own; in Python: pl.probe_checkpoints(run, batch, feature)")
    batch = run.task.sample(n, seed=seed)
    if not run.task.features(batch):
        name = run.config["task"]["task"]
        raise ValueError(
            f"{run.path} trained {name}, which names no features; binary-addition does, and bfs and others"
        )
    return batch


def _known(batch: Any, feature: str) -> str:
    """The kind of a feature."""
    from plateaulens._registry import look_up

    known = batch.task.features(batch)
    if not feature:
        raise ValueError(f"say which feature: --feature {' or '.join(known)}")
    return str(look_up("feature", feature, known).kind)


def _one_state(model: Any, batch: Any, site: str) -> None:
    """Raise unless the model has a hook of this name with a vector at each position, of which directions are."""
    from plateaulens._registry import unknown
    from plateaulens.hooks import hook_names
    from plateaulens.tracing.traces import trace

    if site not in hook_names(model):
        raise unknown("hook", site, hook_names(model))
    if (found := trace(model, batch[:1], [site]).cache[site]).ndim != 3:
        raise ValueError(
            f"directions are of one state a position, and {site} is {list(found.shape)}; take another site"
        )


def _steps(run: Any, steps: str | None) -> list[int]:
    """The saved steps that were asked for."""
    if not run.steps or run.steps[-1] == 0:
        raise ValueError(f"{run.path} has no checkpoint of a trained model, only {run.steps}; `plateaulens resume` it")
    chosen = run.steps if steps is None else sorted(select_steps(steps, run.steps))
    if missing := [step for step in chosen if step not in run.steps]:
        raise ValueError(f"{run.path} has no checkpoint of step {missing[0]}; there are {run.steps}")
    return chosen


def _span(text: str) -> list[int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text.strip())
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"--plateau is the first and the last step of it, such as 100-200; got {text!r}")
    return [int(found[1]), int(found[2])]


def _table(run: Any, over: Any) -> str:
    """The held-out loss and the probes' losses by step, below those of two controls."""
    import pandas as pd

    from plateaulens.probing.verdict import thirds

    table = thirds(over)
    rows = {"untrained": table.baseline.values[0]}
    rows |= {"tokens alone": over.attrs["tokens"]} if "tokens" in over.attrs else {}
    losses = run.metrics.loss if "loss" in run.metrics else {}
    held = [None] * len(rows) + [losses.get(step) for step in table.step.values]
    rows |= {f"step {step}": row for step, row in zip(table.step.values, table.loss.values, strict=True)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=table.third.values)
    frame.insert(0, "loss", held)
    unit = "squared error" if "r2" in over else "nats"
    head = f"{over.attrs['feature']}: test loss of probes ({unit}) in thirds of {int(over.offsets.max())} places"
    return f"{head}\n{frame.astype(float).to_string(float_format='{:.4f}'.format, na_rep='')}"


def _stopped(kept: str) -> NoReturn:
    click.echo(f"stopped; {kept}", err=True)
    sys.exit(130)
