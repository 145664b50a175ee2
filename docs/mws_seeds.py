"""The table of docs/mws.md from runs on disk: `python docs/mws_seeds.py runs/mws-*` prints it as Markdown.

Definitions are those of the reference numbers: plateau loss is the median over measurements from 30 %
of the way to the first step with accuracy above 0.3; the loss has left the plateau when it stays below
the analytic level minus 2 % of the way to the floor (2.60) for three measurements.
"""

import sys

import pandas as pd

import plateaulens as pl
from plateaulens.analysis import first_crossing


def row(run: pl.Run) -> dict[str, object]:
    """One run's numbers."""
    m, plateau = run.metrics, pl.find_plateau(run)
    half, late = first_crossing(m.accuracy, 0.5), first_crossing(m.accuracy, 0.95)
    before = m.loc[: first_crossing(m.accuracy, 0.3)]
    peak = m.collapse.idxmax()
    progress = m.attention_progress
    return {
        "seed": run.config["model"]["seed"],
        "collapse < 0.9": first_crossing(m.collapse.loc[peak:], 0.9, above=False),
        "loss leaves": plateau.end,
        "acc > 0.5": half,
        "acc > 0.95": late,
        "plateau loss": before.loc[0.3 * before.index[-1] :].loss.median(),
        "plateau answer loss": before.loc[0.3 * before.index[-1] :].answer_loss.median(),
        "peak collapse": m.collapse.max(),
        "at ": peak,
        "peak repetition": m.repetition.max(),
        "at": m.repetition.idxmax(),
        "APM start": progress.iloc[0],
        "APM min": progress.min(),
        "APM leaving": progress.get(plateau.end),
        "APM acc > 0.5": progress.get(half),
        "APM end": progress.iloc[-1],
        "loss end": m.loss.iloc[-1],
    }


def main(paths: list[str]) -> None:
    """Print the table, with medians."""
    table = pd.DataFrame([row(pl.Run(path)) for path in paths]).sort_values("seed").set_index("seed").astype(float)
    table.loc["median"] = table.median()
    table.columns = [name.strip() for name in table.columns]
    sys.stdout.write("| seed | " + " | ".join(table.columns) + " |\n" + "|---" * (len(table.columns) + 1) + "|\n")
    for seed, values in table.iterrows():
        cells = [f"{v:.0f}" if v >= 5 or v == 0 else f"{v:.3f}" for v in values]
        sys.stdout.write(f"| {seed} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
