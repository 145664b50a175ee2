"""Table and figure of docs/changes.md.

python -m plateaulens.papers.abrupt_learning.changes_table runs/changes docs/changes.png
"""

import sys
from pathlib import Path

import pandas as pd

from plateaulens import plots
from plateaulens.analysis.paired_differences import PairedDifference
from plateaulens.papers.abrupt_learning.paired_effects import effects
from plateaulens.papers.abrupt_learning.task_figures import picture
from plateaulens.runs.run import Run

PLOTTED = ("mws", "scale-0.2", "scale-10", "optimal-KQ", "optimal-KQOV")


def main(out: str, png: str = "") -> None:
    """Print medians over seeds, and medians of paired differences with their intervals; `never` for no drop.

    Args:
        out: Folder of the runs.
        png: File for the figure; none is drawn if empty.
    """
    if png:
        arms = {name: [Run(path.parent) for path in sorted(Path(out).glob(f"{name}-?/run.json"))] for name in PLOTTED}
        figure = plots.seeds(arms, ["loss", "accuracy", "collapse", "repetition"])
        picture(figure.update_xaxes(range=[0, 600]).update_layout(paper_bgcolor="white", width=900), Path(png))
    table = effects(out)
    columns = ["seeds", "dropped", "drop", "peak collapse", "peak repetition"]
    differences = [name for name in map(str, table) if name.startswith("d ")]
    sys.stdout.write("| change | " + " | ".join([*columns, *differences]) + " |\n")
    sys.stdout.write("|---" * (1 + len(columns) + len(differences)) + "|\n")
    for name, row in table.iterrows():
        counts = [str(int(row.seeds)), str(int(row.dropped)), number(row["drop"])]
        cells = counts + [f"{row[c]:.3f}" for c in columns[3:]]
        cells += ["-" if pd.isna(row[c]) else difference(row[c]) for c in differences]
        sys.stdout.write(f"| {name} | " + " | ".join(cells) + " |\n")


def number(value: float) -> str:
    """Format steps without decimals, differences of shares with two; infinity is a drop that never came."""
    if abs(value) == float("inf"):
        return "never" if value > 0 else "-never"
    return f"{value:.0f}" if abs(value) >= 2 or value == int(value) else f"{value:+.2f}"


def difference(paired: PairedDifference) -> str:
    """Format the median and its interval."""
    low, high = paired.interval
    return f"{number(paired.median)} [{number(low)}, {number(high)}]"


if __name__ == "__main__":
    main(*sys.argv[1:])
