"""The tables of docs/matrix.md on heads, ablations, patches, exchanged parts and copying: `tables(run)`.

Alone: `python docs/matrix_circuits.py runs/matrix/0`.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import xarray as xr

import plateaulens as pl
from plateaulens.analysis import copy_check, head_ablations, head_atlas, head_groups, patch_negated, switch

LOSSES = ("loss", "observed_loss", "masked_loss")


def tables(run: pl.Run, plateau: int = 2000, final: int | None = None, n: int = 2048) -> str:
    """All tables in Markdown.

    Args:
        run: of a `MatrixCompletion`.
        plateau: a checkpoint on the plateau.
        final: one after the drop; the last by default.
        n: fresh matrices that everything is measured on; seed 7.
    """
    final = run.steps[-1] if final is None else final
    batch, before, after = run.task.sample(n, seed=7), run.model(plateau), run.model(final)
    atlas, early = (head_atlas(model, batch) for model in (after, before))
    return "\n".join(
        [
            f"Step {final}, {n} matrices; attention of masked cells by category, times chance below.\n",
            heads(atlas),
            f"\nStep {plateau}: the largest ratio to chance of any head is {early.ratio.max().item():.2f}.\n",
            "Loss of hidden cells without heads (all cells, shown cells of the worst mode).\n",
            ablations(head_ablations(after, batch, groups_of(atlas))),
            "\n-X with attention outputs of X: mean squared distance.\n",
            patches(patch_negated(after, batch)),
            f"\nStep {plateau} (before) and step {final} (after) with parts of each other.\n",
            switches(switch(before, after, batch)),
            "\nTokens put into hidden cells: distance to the token's value, and loss of shown cells.\n",
            copies(run, batch, sorted({*run.steps[1 :: max(1, len(run.steps) // 6)], plateau, final})),
        ]
    )


def heads(atlas: xr.Dataset) -> str:
    """Mass and ratio to chance of every head and category."""
    names = atlas.category.values
    rows = [["chance", "", *(f"{c:.3f}" for c in atlas.chance.values)]]
    for layer in atlas["layer"].values:
        for head in atlas["head"].values:
            one = atlas.sel(layer=layer, head=head)
            cells = (f"{m:.2f} ({r:.1f})" for m, r in zip(one.mass.values, one.ratio.values))
            rows.append([f"L{layer}H{head}", str(one.label.item()), *cells])
    return markdown(["head", "label", *names], rows)


def groups_of(atlas: xr.Dataset) -> dict[str, list[tuple[int, int]]]:
    """The labelled groups of more than one head."""
    return {f"all {label}": group for label, group in head_groups(atlas).items() if len(group) > 1}


def ablations(found: xr.Dataset) -> str:
    """L_mask in the modes side by side, then the largest L and L_obs of the three."""
    modes = found["mode"].values
    rows = []
    for name in found.ablated.values:
        one = found.sel(ablated=name)
        worst = (f"{one[other].max().item():.4f}" for other in LOSSES[:2])
        rows.append([name, *(f"{x:.4f}" for x in one.masked_loss.values), *worst])
    return markdown(["ablated", *(f"L_mask, {mode}" for mode in modes), "largest L", "largest L_obs"], rows)


def patches(found: xr.Dataset) -> str:
    """The four distances of every patch, between no patch and the run on X."""
    columns = [(to, cells) for cells in ("masked", "observed") for to in ("X", "-X")]

    def row(name: str, grid: xr.DataArray) -> list[str]:
        return [name, *(f"{grid.sel(to=to, cells=cells).item():.4f}" for to, cells in columns)]

    rows = [row("no patch", found.unpatched)]
    for layer in found["layer"].values:
        for at in found.positions.values:
            rows.append(row(f"layer {layer}, {at} positions", found.distance.sel(layer=layer, positions=at)))
    rows.append(row("the run on X", found.clean))
    table = markdown(["patched", *(f"to {to} at {cells}" for to, cells in columns)], rows)
    return f"{table}\n\n4 Var = {found.attrs['four_variance']:.3f}"


def switches(found: xr.Dataset) -> str:
    """The three losses of each model with parts of the other."""
    rows = []
    for into in found["into"].values:
        for parts in found.parts.values:
            one = found.sel(into=into, parts=parts)
            rows.append([into, parts, *(f"{one[name].item():.4f}" for name in LOSSES)])
    return markdown(["model", "parts of the other", "L", "L_obs", "L_mask"], rows)


def copies(run: pl.Run, batch: pl.Batch, steps: Sequence[int]) -> str:
    """The copy check on the task's matrices, and on matrices of any rank with the same tokens."""
    low = copy_check(run, batch, steps=steps)
    values = [None if v == "MASK" else float(v) for v in low["value"].values]
    full = copy_check(run, replace(run.task, rank=None).sample(len(batch), seed=7), values, steps)
    rows = []
    for rank, found in ((str(run.task.rank), low), ("full", full)):
        for value in found["value"].values:
            one = found.sel(value=value)
            pairs = zip(one.copied_loss.values, one.observed_loss.values)
            rows.append([rank, value, *(f"{copied:.4f} / {seen:.4f}" for copied, seen in pairs)])
    return markdown(["rank", "token", *(f"step {step}" for step in steps)], rows)


def markdown(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    names = [str(name) for name in head]
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(tables(pl.Run(sys.argv[1])) + "\n")
