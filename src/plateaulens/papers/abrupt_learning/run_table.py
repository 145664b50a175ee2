"""Runs in numbers: `python docs/tables.py runs/mws-*` prints a Markdown table with medians."""

import sys

import pandas as pd

import plateaulens as pl
from plateaulens.papers.abrupt_learning.recipes import summary


def main(paths: list[str]) -> None:
    """Print one row a run and their medians; a dash for what was not reached."""
    table = pd.DataFrame([summary(pl.Run(path)) for path in paths]).set_index("seed").sort_index().astype(float)
    table.loc["median"] = table.median()
    sys.stdout.write("| seed | " + " | ".join(table.columns) + " |\n" + "|---" * (len(table.columns) + 1) + "|\n")
    for seed, values in table.iterrows():
        cells = ["-" if pd.isna(v) else f"{v:.0f}" if abs(v) >= 5 or v == 0 else f"{v:.3f}" for v in values]
        sys.stdout.write(f"| {seed} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
