"""Loss against compute: the steps that a budget pays for, the best run of each budget, whether there are two phases.

`flops` counts as arXiv 2505.03997 does (released code): three times the forward pass, two operations a
multiply-add, without embedding and read-out, over unpadded tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

PAPER_DECADES = {  # (x0, x1), set by hand in the released code; x1 is drawn as the "Task Success Threshold"
    "binary-addition": (1e11, 1e12),
    "bfs": (1e12, 1e13),
    "subarray": (1e12, 1e13),
    "activities": (1e12, 1e13),
    "dfs": (1e13, 1e14),
    "multiplication": (1e15, 1e16),
}

STEEP = 2.0  # from which on a fall is another phase than what came before


def flops(steps: int, *, d_model: int, n_layers: int, batch_size: int, length: float | int) -> float:
    """Training compute: 6 (12 L d^2 + L ctx d) B ctx operations a step, ctx being the mean unpadded `length`."""
    return 6.0 * steps * (12 * n_layers * d_model**2 + n_layers * length * d_model) * batch_size * length


def steps_for(budget: float, *, d_model: int, n_layers: int, batch_size: int, length: float | int) -> int:
    """The steps that `budget` operations pay for, at least one (arXiv 2505.03997, released code)."""
    return ceil(budget / flops(1, d_model=d_model, n_layers=n_layers, batch_size=batch_size, length=length))


def mean_length(task: Any, n: int = 128, seed: int = 0) -> float:
    """Mean tokens of `n` sequences up to and including the first EOS."""
    batch = task.sample(n, seed=seed)
    return float((batch.answer_positions.amax(1) + 2).double().mean())


def frontier(runs: pd.DataFrame, loss: str = "loss") -> pd.DataFrame:
    """The run with the lowest loss at each budget, ascending.

    Args:
        runs: a row per run with a column `budget`, and a column `loss`; other columns are kept.
        loss: the column that is compared.

    Raises:
        ValueError: without one of these columns.
    """
    if missing := {"budget", loss} - set(runs):
        raise ValueError(f"a frontier needs the columns budget and {loss}; there is no {sorted(missing)[0]}")
    runs = runs.reset_index(drop=True)  # tables that were joined have labels of rows twice
    best = runs.loc[runs.groupby("budget")[loss].idxmin()]
    return best.sort_values("budget").set_index("budget")


@dataclass(frozen=True)
class TwoPhases:
    """What `two_phases` found.

    Attributes:
        plateau: median loss of the budgets before the steepest fall.
        last_flat: the largest of them.
        transition: the first budget after it whose loss is below it by half of what is lost in all; None when the
            loss falls by less than `least` of the plateau, or no more steeply than before.
        steepness: of the fall, against the slope of a power law fitted to the plateau: slope of log loss in log budget.
            NaN for a plateau of one budget, which has no slope.
    """

    plateau: float
    last_flat: float
    transition: float | None
    steepness: float


def two_phases(losses: Mapping[float, float] | pd.Series, least: float = 0.1) -> TwoPhases:
    """A slow phase, then an abrupt one? Ours: the paper sets the decades by hand (`PAPER_DECADES`).

    The plateau are the budgets before the largest fall of log loss from one budget to the next; the transition is the
    first budget after them whose loss is below plateau - (plateau - final) / 2. A power law loses much too, at a
    steepness of 1: there are two phases only at a steepness above 2, and none can be told from one budget before the
    fall.

    Args:
        losses: frontier loss by budget.
        least: of the plateau that must be lost in all for a transition.

    Raises:
        ValueError: for fewer than three budgets, or a loss that is not positive.
    """
    curve = pd.Series(losses, dtype=float).sort_index()
    if len(curve) < 3 or not (curve > 0).all():
        raise ValueError(f"two phases take at least three budgets with positive losses, got {dict(curve)}")
    x, y = np.log10(curve.index.to_numpy(dtype=float)), np.log10(curve.to_numpy())
    slopes = np.diff(y) / np.diff(x)
    at = int(np.diff(y).argmin())
    flat, plateau, final = curve.iloc[: at + 1], float(curve.iloc[: at + 1].median()), float(curve.iloc[-1])
    low = curve.iloc[at + 1 :]
    low = low[low < plateau - 0.5 * (plateau - final)]
    before = abs(np.polyfit(x[: at + 1], y[: at + 1], 1)[0]) if at else np.nan
    steepness = float(abs(slopes[at]) / before) if before != 0 else float("inf")
    falls = plateau - final >= least * plateau and len(low) > 0 and steepness > STEEP
    return TwoPhases(plateau, float(flat.index[-1]), float(low.index[0]) if falls else None, steepness)
