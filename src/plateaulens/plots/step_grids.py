"""Heat maps over pairs of training steps."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from plateaulens._registry import look_up
from plateaulens.plots.style import RED, styled

SAID = {"blocks.*.attn.hook_pattern": "attention"}
GAP = 0.3  # between the grid and the untouched models, in cells
SHARES = ("accuracy", "repetition")  # measured from 0 to 1


def step_grid(dataset: Any, name: str | None = None) -> go.Figure:
    """What step s (rows) gives in the model of step t (columns), as `patch_across_steps` measured it.

    Every step is as wide as any other. The row "own" is the untouched model of the target step, the column
    "own" that of the source step; cells of one and the same step are outlined.

    Args:
        dataset: what `patch_across_steps` returned.
        name: which measurement; the first by default.

    Raises:
        ValueError: for a measurement that the dataset does not have, or one with several values a cell.
    """
    name = str(next(iter(dataset.data_vars))) if name is None else name
    grid = look_up("measurement of this grid", name, {str(key): values for key, values in dataset.data_vars.items()})
    if grid.ndim != 2:
        axis = grid.dims[2]
        raise ValueError(f"{name} has {grid.sizes[axis]} values a cell; choose one: dataset.isel({axis}=0)")
    sources, targets = dataset.source.values.tolist(), dataset.target.values.tolist()
    unpatched, alone = dataset[f"{name}_unpatched"].values, dataset[f"{name}_source"].values
    what = SAID.get(dataset.attrs["what"], dataset.attrs["what"])
    z = np.full((len(sources) + 2, len(targets) + 2), np.nan)  # a gap, then the untouched models
    z[:-2, :-2], z[-1, :-2], z[:-2, -1] = grid.values, unpatched, alone
    words = np.full(z.shape, "", dtype=object)
    for i, s in enumerate(sources):
        words[i, -1] = f"the untouched model of step {s}<br>{name} {alone[i]:.3g}"
        for j, t in enumerate(targets):
            words[i, j] = (
                f"{what} of step {s} in the model of step {t}<br>{name} {grid.values[i, j]:.3g}"
                f"<br>untouched: step {s} {alone[i]:.3g}, step {t} {unpatched[j]:.3g}"
            )
    for j, t in enumerate(targets):
        words[-1, j] = f"the untouched model of step {t}<br>{name} {unpatched[j]:.3g}"
    limits = {"zmin": 0, "zmax": 1} if name.endswith(SHARES) else {}
    look = {"colorscale": "Viridis", "xgap": 1, "ygap": 1, "colorbar": {"thickness": 10, "nticks": 6}}
    heat = go.Heatmap(z=z, x=_edges(targets), y=_edges(sources), text=words, **look, **limits)
    figure = go.Figure(heat.update(hovertemplate="%{text}<extra></extra>", hoverongaps=False))
    for i, s in enumerate(sources):
        for j in (j for j, t in enumerate(targets) if t == s):
            figure.add_shape(type="rect", x0=j, x1=j + 1, y0=i, y1=i + 1, line={"color": RED, "width": 2})
    figure.update_xaxes(title="target: the model of step", showgrid=False, **_ticks(targets))
    figure.update_yaxes(title=f"source: {what} of step", showgrid=False, autorange="reversed", **_ticks(sources))
    return styled(figure, height=160 + max(260, min(640, 40 * z.shape[0])), title=f"{name} of patched models")


def _edges(steps: list[int]) -> list[float]:
    """Cell borders: a cell a step, a narrow gap, a cell more."""
    n = len(steps)
    return [*map(float, range(n + 1)), n + GAP, n + GAP + 1]


def _ticks(steps: list[int]) -> dict[str, Any]:
    n = len(steps)
    return {"tickvals": [*(i + 0.5 for i in range(n)), n + GAP + 0.5], "ticktext": [*map(str, steps), "own"]}
