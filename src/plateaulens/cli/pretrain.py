"""`plateaulens pretrain`: pre-train a small language model."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from plateaulens.cli.base import given_values, main, option, require_device


@main.command()
@option("--text", type=click.Path(path_type=Path), help="A text file in UTF-8.  [default: Python's documentation]")
@option("--out", default="runs/pretrain", type=click.Path(path_type=Path), help="Folder of the checkpoints.")
@option("--overwrite", is_flag=True, help="Rename an existing folder instead of refusing or continuing.")
@option("--steps", type=int, help="Number of optimizer updates.  [default: 512]")
@option("--save-at", help="Steps to save, as in 0,16,64.  [default: 0, 1, 2, 4, ..., 512, 1000, 2000, ...]")
@option("--seed", default=0, help="Seed of the initial weights and of the data.")
@option("--hidden", default=64, help="Width of the residual stream.")
@option("--layers", default=3, help="Number of layers.")
@option("--heads", default=4, help="Number of attention heads per layer.")
@option("--vocab", default=512, help="Vocabulary size of the byte-level BPE tokenizer.")
@option("--context", default=64, help="Number of tokens in a training window.")
@option("--batch-size", type=int, help="Number of windows per update.  [default: 32]")
@option("--lr", type=float, help="Learning rate.  [default: 3e-3]")
@option("--warmup", default=0, help="Number of updates with a rising learning rate.")
@option("--dtype", default="float32", help="Type of the saved weights: float32, float16 or bfloat16.")
@option("--device", default="cpu", help="Device: cpu, cuda or mps.")
def pretrain(
    text: Path | None,
    out: Path,
    overwrite: bool,
    save_at: str | None,
    hidden: int,
    layers: int,
    heads: int,
    vocab: int,
    context: int,
    dtype: str,
    device: str,
    **given: Any,
) -> None:
    """Train a small GPT-NeoX on English text and save checkpoints at Pythia's steps; call again to continue.

    Example: plateaulens pretrain --steps 512 --seed 0 --out runs/pretrain
    """
    import json

    import torch

    from plateaulens._registry import look_up
    from plateaulens.lm import pretraining

    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    require_device(device)
    try:
        folder = pretraining.pretrain(
            out,
            text,
            hidden=hidden,
            layers=layers,
            heads=heads,
            vocab=vocab,
            context=context,
            train=replace(pretraining.DEFAULT, **given_values(given)),
            steps_to_save=None if save_at is None else [int(step) for step in save_at.split(",")],
            dtype=look_up("dtype", dtype, dtypes),
            device=device,
            overwrite=overwrite,
        )
    except KeyboardInterrupt:
        click.echo("interrupted; the same command continues" + " (without --overwrite)" * overwrite, err=True)
        sys.exit(130)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        click.echo(f"step {values['step']:>6}  held-out loss {values['loss']:.3f}")
    click.echo(folder)
