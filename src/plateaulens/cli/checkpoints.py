"""`plateaulens checkpoints ...`: what others trained, measured."""

import re
from pathlib import Path
from typing import Any

import click

from plateaulens.cli.base import Group, given_values, main, option, require_device


@main.group(cls=Group)
def checkpoints() -> None:
    """List, measure and audit checkpoints of language models.

    SUITE is pythia-14m, pythia-70m-deduped, pythia-14m-seed3, olmo2-7b, owner/name of a Hub, or a folder of
    step0, step1, ... as `plateaulens pretrain` writes it.

    Example: plateaulens checkpoints measure pythia-14m --steps 0-10000
    """


@checkpoints.command("steps")
@click.argument("suite")
@option("--sizes", is_flag=True, help="Ask for the bytes of each step too: one request a step.")
def steps_(suite: str, sizes: bool) -> None:
    """List the steps of SUITE; nothing is downloaded.

    Example: plateaulens checkpoints steps pythia-14m --sizes
    """
    import pandas as pd
    from tqdm.auto import tqdm

    import plateaulens as pl
    from plateaulens.lm.source import few

    found = pl.lm.load(suite)
    rows = []
    for step in tqdm(found.steps, unit="step", disable=None if sizes else True, leave=False):
        row = {"step": step, "revision": found.revision(step), "tokens": found.tokens(step)}
        rows.append(row | ({"bytes": found.size(step) if found.has_weights(step) else "no weights"} if sizes else {}))
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    click.echo(table.to_string(index=False))
    if found.expected is not None and (missing := sorted(set(found.expected) - set(found.steps))):
        click.echo(f"announced and not there: {few(missing)}")


@checkpoints.command()
@click.argument("suite")
@option("--steps", help="Such as 0,16,64 or 0-10000, or both: 0,64-1000.  [default: all]")
@option("--out", type=click.Path(path_type=Path), help="Folder of the survey.  [default: surveys/SUITE]")
@option("--prompts", default="built-in", help="built-in, arc-easy, or a text file with a prompt a line.")
@option("--n", type=click.IntRange(1), help="The first so many prompts.  [default: 100; all lines of a file]")
@option("--n-new", type=click.IntRange(1), default=8, help="Tokens to generate after each.")
@option("--shuffle", type=int, help="Seed that shuffles the prompts before the first are taken.")
@option("--sample", is_flag=True, help="Draw the tokens instead of taking the likeliest.")
@option("--seed", "draws", type=int, help="Of the draws.  [default: 0]")
@option("--temperature", type=float, help="Of the draws.  [default: 1]")
@option("--top-k", type=int, help="Draw among the likeliest so many.  [default: 50]")
@option("--metrics", multiple=True, help="A measurement, such as norm@*. Repeatable.  [default: a dozen]")
@option("--max-bytes", help="Most that may lie on disk at a time, such as 2GB.  [default: two checkpoints]")
@option("--cache", type=click.Path(path_type=Path), help="Where checkpoints are kept meanwhile.")
@option("--device", help="cpu, cuda or mps.  [default: cuda if there is one]")
@option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]), default="float32")
@option("--compare-with", type=click.Path(path_type=Path), help="A run to show in the report on the same axes.")
def measure(
    suite: str,
    steps: str | None,
    out: Path | None,
    prompts: str,
    n: int | None,
    n_new: int,
    shuffle: int | None,
    sample: bool,
    metrics: tuple[str, ...],
    max_bytes: str | None,
    cache: Path | None,
    device: str | None,
    dtype: str,
    compare_with: Path | None,
    **decoding: Any,
) -> None:
    """Measure the steps of SUITE one after the other, keeping each result; call again to go on.

    Checkpoints are fetched, verified, measured and evicted; the next comes while one is measured.

    Example: plateaulens checkpoints measure pythia-14m --steps 0-10000 --prompts arc-easy
    """
    import torch

    import plateaulens as pl
    from plateaulens.lm.evaluation import SHOWN

    if device is not None:
        require_device(device)
    if (drawn := given_values(decoding)) and not sample:
        raise ValueError(f"--{min(drawn).replace('_', '-').replace('draws', 'seed')} is about draws; add --sample")
    options: dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    kept = given_values({"max_bytes": None if max_bytes is None else size(max_bytes), "cache": cache})
    if kept and Path(suite).is_dir():
        raise ValueError(f"--{min(kept).replace('_', '-')} is about checkpoints of a Hub, and {suite} is a folder")
    options |= kept
    found = pl.lm.load(suite, **options)
    other = None if compare_with is None else pl.Run(compare_with)
    if other is not None and metrics and not {*SHOWN} <= {*metrics}:
        raise ValueError(f"--compare-with compares {' and '.join(SHOWN)}; --metrics them too")
    chosen = None if steps is None else among(steps, found.steps)
    try:
        batch = found.prompts(prompts, n, n_new=n_new, seed=shuffle, sample=sample, **drawn)
        done = pl.lm.evaluate(found, out or default_folder(suite), batch, list(metrics) or None, chosen)
    except KeyboardInterrupt:
        click.echo("stopped; what was measured is kept, the same command goes on", err=True)
        raise SystemExit(130) from None
    if not (metrics := done.metrics).empty:
        short = [name for name in SHOWN if name in metrics] or metrics.columns.drop("near_ties")
        click.echo(metrics[[*short, "near_ties"]].round(3).to_string(line_width=120))
    click.echo(pl.write_report(done, other))


@checkpoints.command()
@click.argument("suite")
@option("--steps", help="Such as 0,16,64 or 0-10000.  [default: all]")
@option("--out", type=click.Path(path_type=Path), help="Write the audit as JSON too.")
def audit(suite: str, steps: str | None, out: Path | None) -> None:
    """Compare the weights of SUITE's steps by the hashes that the Hub lists; nothing is downloaded.

    Of a local folder, the tensors are compared.

    Example: plateaulens checkpoints audit pythia-2.8b
    """
    import plateaulens as pl
    from plateaulens._io import write_json

    found = pl.lm.load(suite)
    result = pl.lm.audit(found, None if steps is None else among(steps, found.steps))
    click.echo(repr(result))
    if out is not None:
        write_json(out, result.to_json())
        click.echo(out)


@checkpoints.command()
@click.argument("suites", nargs=-1, required=True)
@option("--compare-with", type=click.Path(path_type=Path), help="A run to show on the same axes.")
def report(suites: tuple[str, ...], compare_with: Path | None) -> None:
    """Write report.html of what was measured of SUITES (their names, or folders of surveys).

    Example: plateaulens checkpoints report pythia-14m --compare-with runs/mws-0
    """
    import plateaulens as pl

    other = None if compare_with is None else pl.Run(compare_with)
    for suite in suites:
        folder = Path(suite) if (Path(suite) / "evaluation.json").is_file() else default_folder(suite)
        click.echo(pl.write_report(pl.lm.EvaluatedCheckpoints(folder), other))


def default_folder(suite: str) -> Path:
    """Where the survey of a suite goes unless told otherwise."""
    return (
        Path("surveys") / Path(suite).resolve().name if Path(suite).is_dir() else Path("surveys") / suite.split("/")[-1]
    )


def among(text: str, steps: list[int]) -> list[int]:
    """The steps that "0,16,64-1000" means: each number, and every step there is within a range.

    Raises:
        ValueError: for anything else, or a range without a step.
    """
    chosen: dict[int, None] = {}
    for part in text.split(","):
        if part.strip().isdigit():
            chosen[int(part)] = None
        elif span := re.fullmatch(r"\s*(\d+)-(\d+)\s*", part):
            inside = [step for step in steps if int(span[1]) <= step <= int(span[2])]
            if not inside:
                raise ValueError(f"there is no step in {part.strip()}; there are {steps[0]} to {steps[-1]}")
            chosen.update(dict.fromkeys(inside))
        else:
            raise ValueError(f"steps are numbers and ranges such as 0,16,64-1000; got {text!r}")
    return list(chosen)


def size(text: str) -> int:
    """Bytes: "500MB", "2GB", "2e9".

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    try:
        return int(float(found[1]) * 1000 ** " kMGT".lower().index(found[2].lower() or " "))  # type: ignore[index]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a number of bytes is such as 500MB or 2GB; got {text!r}") from None
