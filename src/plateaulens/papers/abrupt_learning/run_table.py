"""Table of runs in docs/mws.md and docs/tasks, in Markdown, with medians.

python -m plateaulens.papers.abrupt_learning.run_table runs/mws-*
"""

import sys

import pandas as pd

from plateaulens.papers.abrupt_learning.recipes import summary
from plateaulens.runs.run import Run


def main(paths: list[str]) -> None:
    """Print one row per run, and the medians; a dash for what was not reached."""
    table = pd.DataFrame([summary(Run(path)) for path in paths]).set_index("seed").sort_index().astype(float)
    table.loc["median"] = table.median()
    sys.stdout.write("| seed | " + " | ".join(table.columns) + " |\n" + "|---" * (len(table.columns) + 1) + "|\n")
    for seed, values in table.iterrows():
        cells = ["-" if pd.isna(v) else f"{v:.0f}" if abs(v) >= 5 or v == 0 else f"{v:.3f}" for v in values]
        sys.stdout.write(f"| {seed} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
