"""Heat maps over pairs of training steps."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from plateaulens._registry import look_up
from plateaulens.plots.style import RED, styled

SITE_LABELS = {"blocks.*.attn.hook_pattern": "attention"}
GAP = 0.3  # in cells, between the grid and the unpatched models
SHARES = ("accuracy", "repetition")  # metrics from 0 to 1


def step_grid(dataset: xr.Dataset, name: str | None = None) -> go.Figure:
    """Metric of the model of step t (columns) with activations or weights of step s (rows).

    Every step is equally wide. The row "own" is the unpatched model of the target step, the column "own" that
    of the source step; cells with equal source and target are outlined.

    Args:
        dataset: Result of `patch_across_steps`.
        name: Name of the metric to draw; the first by default.

    Raises:
        ValueError: for a metric that the dataset does not have, or one with several values in a cell.
    """
    name = str(next(iter(dataset.data_vars))) if name is None else name
    grid = look_up("metric of this grid", name, {str(key): values for key, values in dataset.data_vars.items()})
    if grid.ndim != 2:
        axis = grid.dims[2]
        raise ValueError(f"{name} has {grid.sizes[axis]} values a cell; choose one: dataset.isel({axis}=0)")
    sources, targets = dataset.source.values.tolist(), dataset.target.values.tolist()
    of_target, of_source = dataset[f"{name}_unpatched"].values, dataset[f"{name}_source"].values
    patched = SITE_LABELS.get(dataset.attrs["what"], dataset.attrs["what"])
    z = np.full((len(sources) + 2, len(targets) + 2), np.nan)  # a gap, then the unpatched models
    z[:-2, :-2], z[-1, :-2], z[:-2, -1] = grid.values, of_target, of_source
    hover = np.full(z.shape, "", dtype=object)
    for i, s in enumerate(sources):
        hover[i, -1] = f"the unpatched model of step {s}<br>{name} {of_source[i]:.3g}"
        for j, t in enumerate(targets):
            hover[i, j] = (
                f"{patched} of step {s} in the model of step {t}<br>{name} {grid.values[i, j]:.3g}"
                f"<br>unpatched: step {s} {of_source[i]:.3g}, step {t} {of_target[j]:.3g}"
            )
    for j, t in enumerate(targets):
        hover[-1, j] = f"the unpatched model of step {t}<br>{name} {of_target[j]:.3g}"
    limits = {"zmin": 0, "zmax": 1} if name.endswith(SHARES) else {}
    look = {"colorscale": "Viridis", "xgap": 1, "ygap": 1, "colorbar": {"thickness": 10, "nticks": 6}}
    heatmap = go.Heatmap(z=z, x=_edges(targets), y=_edges(sources), text=hover, **look, **limits)
    figure = go.Figure(heatmap.update(hovertemplate="%{text}<extra></extra>", hoverongaps=False))
    for i, s in enumerate(sources):
        for j in (j for j, t in enumerate(targets) if t == s):
            figure.add_shape(type="rect", x0=j, x1=j + 1, y0=i, y1=i + 1, line={"color": RED, "width": 2})
    figure.update_xaxes(title="target: the model of step", showgrid=False, **_ticks(targets))
    figure.update_yaxes(title=f"source: {patched} of step", showgrid=False, autorange="reversed", **_ticks(sources))
    return styled(figure, height=160 + max(260, min(640, 40 * z.shape[0])), title=f"{name} of patched models")


def _edges(steps: list[int]) -> list[float]:
    """Borders of the cells: one cell for each step, a narrow gap, one more cell."""
    n = len(steps)
    return [*map(float, range(n + 1)), n + GAP, n + GAP + 1]


def _ticks(steps: list[int]) -> dict[str, Any]:
    """A label in the middle of each cell."""
    n = len(steps)
    return {"tickvals": [*(i + 0.5 for i in range(n)), n + GAP + 0.5], "ticktext": [*map(str, steps), "own"]}
