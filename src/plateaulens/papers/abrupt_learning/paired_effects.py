"""Effects of the changes of arXiv 2506.13688 on the plateau, paired by seed with the unchanged training.

print(effects("runs/changes").to_string())           # after: plateaulens reproduce changes --out runs/changes
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from plateaulens.analysis.paired_differences import PairedDifference, paired_difference
from plateaulens.analysis.plateau import find_plateau
from plateaulens.papers.abrupt_learning.recipes import CONTROL, GROUPS
from plateaulens.runs.run import Run

PEAKS = ("collapse", "repetition")


def effects(out: str | Path) -> pd.DataFrame:
    """Summarize the finished runs of the control and of each change in a folder.

    Peaks are taken from the first step of the changed run on, in its control too. `drop` is that of `find_plateau`,
    inf for a run that never dropped.

    Args:
        out: Folder of the runs, as `reproduce` names them.

    Returns:
        One row per change. Columns `seeds` and `dropped` (numbers of runs), `drop`, `peak collapse` and
        `peak repetition` (medians); for the changes also `d drop`, `d peak collapse` and `d peak repetition`:
        `PairedDifference`s, None with fewer than two pairs.

    Raises:
        ValueError: If the control has no finished run there.
    """
    runs = {name: _finished(Path(out), name) for name in GROUPS["changes"]}
    if not runs[CONTROL]:
        raise ValueError(f"{out} has no finished run {CONTROL}-0, {CONTROL}-1, ...; `plateaulens reproduce changes`")
    rows = {name: _row(runs[CONTROL], arm, name != CONTROL) for name, arm in runs.items() if arm}
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="change"))


def _finished(out: Path, name: str) -> dict[int, Run]:
    runs = {
        int(p.parent.name.rpartition("-")[2]): Run(p.parent)
        for p in out.glob(f"{name}-[0-9]*/run.json")
        if p.parent.name.removeprefix(f"{name}-").isdigit()
    }
    return {seed: run for seed, run in sorted(runs.items()) if run.finished}


def _row(control: dict[int, Run], arm: dict[int, Run], is_changed: bool) -> dict[str, Any]:
    drops = pd.Series([find_plateau(run).drop for run in arm.values()], dtype=float)
    start = next(iter(arm.values())).config["record"]["start"]
    values: dict[str, Any] = {"seeds": len(arm), "dropped": int(drops.notna().sum())}
    values["drop"] = drops.fillna(float("inf")).median()
    values |= {f"peak {m}": pd.Series([_peak(m, start)(run) for run in arm.values()]).median() for m in PEAKS}
    if is_changed:
        both = [seed for seed in arm if seed in control]
        values["d drop"] = _difference(control, arm, both, "drop")
        values |= {f"d peak {m}": _difference(control, arm, both, _peak(m, start)) for m in PEAKS}
    return values


def _peak(metric: str, start: int) -> Callable[[Run], float]:
    def peak(run: Run) -> float:
        return float(run.metrics[metric].loc[start:].max())

    peak.__name__ = f"peak {metric}"
    return peak


def _difference(
    control: dict[int, Run], arm: dict[int, Run], seeds: list[int], value: str | Callable[[Run], float | None]
) -> PairedDifference | None:
    return paired_difference([control[s] for s in seeds], [arm[s] for s in seeds], value) if len(seeds) > 1 else None
