"""`plateaulens checkpoints ...`: list, evaluate and audit checkpoints of language models."""

import re
from pathlib import Path
from typing import Any

import click

from plateaulens.cli.base import Group, given_values, main, option, require_device


@main.group(cls=Group)
def checkpoints() -> None:
    """List, evaluate and audit checkpoints of language models.

    SUITE is pythia-14m, pythia-70m-deduped, pythia-14m-seed3, olmo2-7b, owner/name of a Hub, or a folder of
    step0, step1, ... as `plateaulens pretrain` writes it.

    Example: plateaulens checkpoints evaluate pythia-14m --steps 0-10000
    """


@checkpoints.command("list")
@click.argument("suite")
@option("--sizes", is_flag=True, help="Show the bytes of each step too, for which the Hub is asked once per step.")
def list_(suite: str, sizes: bool) -> None:
    """List the steps of SUITE; nothing is downloaded.

    Example: plateaulens checkpoints list pythia-14m --sizes
    """
    import pandas as pd
    from tqdm.auto import tqdm

    import plateaulens as pl
    from plateaulens.lm.source import list_steps

    series = pl.lm.load(suite)
    rows = []
    for step in tqdm(series.steps, unit="step", disable=None if sizes else True, leave=False):
        row = {"step": step, "revision": series.revision(step), "tokens": series.tokens(step)}
        rows.append(row | ({"bytes": series.size(step) if series.has_weights(step) else "no weights"} if sizes else {}))
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    click.echo(table.to_string(index=False))
    if series.expected is not None and (missing := sorted(set(series.expected) - set(series.steps))):
        click.echo(f"announced but missing: {list_steps(missing)}")


@checkpoints.command()
@click.argument("suite")
@option("--steps", help="Steps to evaluate, as 0,16,64 or 0-10000 or both: 0,64-1000.  [default: all]")
@option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: results/SUITE]")
@option("--prompts", default="built-in", help="Prompts: built-in, arc-easy, or a text file with a prompt a line.")
@option("--n", type=click.IntRange(1), help="Number of prompts.  [default: 100; all lines of a file]")
@option("--n-new", type=click.IntRange(1), default=8, help="Number of tokens to generate after each prompt.")
@option("--shuffle", type=int, help="Seed that shuffles the prompts before the first --n are taken.")
@option("--sample", is_flag=True, help="Draw the tokens instead of taking the likeliest.")
@option("--seed", "draws", type=int, help="Seed of the draws.  [default: 0]")
@option("--temperature", type=float, help="Temperature of the draws.  [default: 1]")
@option("--top-k", type=int, help="Draw among this many of the likeliest tokens.  [default: 50]")
@option("--metrics", multiple=True, help="A metric, such as norm@*; repeat for several.  [default: a dozen]")
@option("--max-bytes", help="Limit on downloaded checkpoints on disk, such as 2GB.  [default: two checkpoints]")
@option("--cache", type=click.Path(path_type=Path), help="Folder of downloaded checkpoints.")
@option("--device", help="Device: cpu, cuda or mps.  [default: cuda if there is one]")
@option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    help="Type of the weights.",
)
@option("--compare-with", type=click.Path(path_type=Path), help="A run to show in the report on the same axes.")
def evaluate(
    suite: str,
    steps: str | None,
    out: Path | None,
    metrics: tuple[str, ...],
    compare_with: Path | None,
    **given: Any,
) -> None:
    """Measure the steps of SUITE one after the other; call again to continue.

    Checkpoints are fetched, verified, measured and evicted; the next one is fetched while one is measured.

    Example: plateaulens checkpoints evaluate pythia-14m --steps 0-10000 --prompts arc-easy
    """
    import plateaulens as pl
    from plateaulens.lm.evaluation import HEADLINE_METRICS

    decoding = _decoding(given)
    series = pl.lm.load(suite, **_suite_options(suite, given))
    run = None if compare_with is None else pl.Run(compare_with)
    if run is not None and metrics and not {*HEADLINE_METRICS} <= {*metrics}:
        raise ValueError(f"--compare-with compares {' and '.join(HEADLINE_METRICS)}; add them to --metrics")
    chosen = None if steps is None else select_steps(steps, series.steps)
    try:
        batch = series.prompts(given["prompts"], given["n"], n_new=given["n_new"], seed=given["shuffle"], **decoding)
        results = pl.lm.evaluate(series, out or default_folder(suite), batch, list(metrics) or None, chosen)
    except KeyboardInterrupt:
        click.echo("interrupted; results so far are kept, and the same command continues", err=True)
        raise SystemExit(130) from None
    if not (table := results.metrics).empty:
        shown = [name for name in HEADLINE_METRICS if name in table] or table.columns.drop("near_ties")
        click.echo(table[[*shown, "near_ties"]].round(3).to_string(line_width=120))
    click.echo(pl.write_report(results, run))


def _decoding(given: dict[str, Any]) -> dict[str, Any]:
    """Options of the draws, refused without --sample."""
    draws = given_values({name: given[name] for name in ("draws", "temperature", "top_k")})
    if draws and not given["sample"]:
        raise ValueError(
            f"--{min(draws).replace('_', '-').replace('draws', 'seed')} has an effect only on draws; add --sample"
        )
    return {"sample": given["sample"], **draws}


def _suite_options(suite: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options of `Checkpoints`; those on downloads are refused for a folder."""
    import torch

    if given["device"] is not None:
        require_device(given["device"])
    max_bytes = given["max_bytes"]
    downloads = given_values(
        {"max_bytes": None if max_bytes is None else parse_size(max_bytes), "cache": given["cache"]}
    )
    if downloads and Path(suite).is_dir():
        raise ValueError(f"--{min(downloads).replace('_', '-')} has an effect only on a Hub, and {suite} is a folder")
    return {"device": given["device"], "dtype": getattr(torch, given["dtype"]), **downloads}


@checkpoints.command()
@click.argument("suite")
@option("--steps", help="Steps to audit, as 0,16,64 or 0-10000.  [default: all]")
@option("--out", type=click.Path(path_type=Path), help="File for the audit as JSON.")
def audit(suite: str, steps: str | None, out: Path | None) -> None:
    """Compare the weights of SUITE's steps by the hashes that the Hub lists; nothing is downloaded.

    Of a local folder, the tensors are compared.

    Example: plateaulens checkpoints audit pythia-2.8b
    """
    import plateaulens as pl
    from plateaulens._io import write_json

    series = pl.lm.load(suite)
    result = pl.lm.audit(series, None if steps is None else select_steps(steps, series.steps))
    click.echo(repr(result))
    if out is not None:
        write_json(out, result.to_json())
        click.echo(out)


@checkpoints.command()
@click.argument("suites", nargs=-1, required=True)
@option("--compare-with", type=click.Path(path_type=Path), help="A run to show on the same axes.")
def report(suites: tuple[str, ...], compare_with: Path | None) -> None:
    """Write report.html on the results of SUITES (their names, or folders of results).

    Example: plateaulens checkpoints report pythia-14m --compare-with runs/mws-0
    """
    import plateaulens as pl

    run = None if compare_with is None else pl.Run(compare_with)
    for suite in suites:
        folder = Path(suite) if (Path(suite) / "evaluation.json").is_file() else default_folder(suite)
        click.echo(pl.write_report(pl.lm.EvaluatedCheckpoints(folder), run))


def default_folder(suite: str) -> Path:
    """Folder of the results of a suite unless another is given."""
    return Path("results") / (Path(suite).resolve().name if Path(suite).is_dir() else suite.split("/")[-1])


def select_steps(text: str, steps: list[int]) -> list[int]:
    """The steps that a text such as "0,16,64-1000" selects: each number, and every existing step within a range.

    Raises:
        ValueError: For another text, or a range without a step.
    """
    selected: dict[int, None] = {}
    for part in text.split(","):
        if part.strip().isdigit():
            selected[int(part)] = None
        elif span := re.fullmatch(r"\s*(\d+)-(\d+)\s*", part):
            inside = [step for step in steps if int(span[1]) <= step <= int(span[2])]
            if not inside:
                raise ValueError(f"there is no step in {part.strip()}; there are {steps[0]} to {steps[-1]}")
            selected.update(dict.fromkeys(inside))
        else:
            raise ValueError(f"steps are numbers and ranges such as 0,16,64-1000; got {text!r}")
    return list(selected)


def parse_size(text: str) -> int:
    """Bytes of a size such as "500MB", "2GB" or "2e9".

    Raises:
        ValueError: For another text.
    """
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    try:
        return int(float(match[1]) * 1000 ** " kMGT".lower().index(match[2].lower() or " "))  # type: ignore[index]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a number of bytes is such as 500MB or 2GB; got {text!r}") from None
