"""Heat maps of activation and path patching."""

from math import ceil
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from plateaulens.plots.style import styled


def patching(grid: xr.DataArray) -> go.Figure:
    """Metric after each patch, as a heat map; with three axes, a panel for each head.

    Colors are centered on the corrupted prompts: white where a patch has no effect, red where it raises the metric.

    Args:
        grid: Result of `activation_patching`, `path_patching` or `normalized`.

    Raises:
        ValueError: for a grid without the attribute "corrupted", or of more than three axes.
    """
    if "corrupted" not in grid.attrs or not 1 <= grid.ndim <= 3:
        raise ValueError(
            f"patching draws grids of 1 to 3 axes with the attribute 'corrupted', got axes {list(grid.dims)} and "
            f"attributes {list(grid.attrs)}; pass the result of activation_patching with its attributes"
        )
    split = ("head" if "head" in grid.dims else grid.dims[-1]) if grid.ndim == 3 else None
    panels = {f"{split} {i}": grid.sel({split: i}) for i in grid[split].values} if split else {"": grid}
    columns = min(len(panels), 4)
    rows = ceil(len(panels) / columns)
    layout: dict[str, Any] = {"vertical_spacing": 0.3 / rows, "horizontal_spacing": 0.15 / columns}
    layout |= {"shared_xaxes": "all", "shared_yaxes": "all", "subplot_titles": list(panels)}
    layout["specs"] = [[{} if row * columns + i < len(panels) else None for i in range(columns)] for row in range(rows)]
    figure = make_subplots(rows, columns, **layout)
    for i, panel in enumerate(panels.values()):
        figure.add_trace(_heatmap(panel), i // columns + 1, i % columns + 1)
    y, x = ("", *panel.dims)[-2:]
    figure.update_xaxes(dtick=ceil(panel.shape[-1] * columns / 16))  # whole numbers, as many as there is room for
    figure.update_xaxes(title=x, row=rows)
    figure.update_yaxes(autorange="reversed", dtick=ceil(panel.shape[0] / 16), visible=bool(y))
    figure.update_yaxes(title=y, col=1)
    middle = grid.attrs["corrupted"]
    reach = float(np.nanmax(np.abs(grid.values - middle), initial=0.0)) or 1.0
    scale = {"colorscale": "RdBu", "reversescale": True, "cmin": middle - reach, "cmax": middle + reach}
    what = f"paths to {grid.attrs['receivers']}" if "receivers" in grid.attrs else f"{grid.attrs.get('site')} patched"
    height = 160 + rows * max(100, min(360, 32 * panel.shape[0] if y else 100))
    styled(figure, title=f"{grid.name}, {what}", height=height, coloraxis=scale)
    return figure.update_layout(margin_t=90 if split else 50)  # the titles of panels are below the title of the figure


def _heatmap(panel: xr.DataArray) -> go.Heatmap:
    """Heat map of one panel: the last axis to the right, another one downwards."""
    y, x = ("", *panel.dims)[-2:]
    z = panel.values if y else panel.values[None]
    hover = f"{y} %{{y}}, {x} %{{x}}: %{{z:.4g}}<extra></extra>" if y else f"{x} %{{x}}: %{{z:.4g}}<extra></extra>"
    rows = panel[y].values if y else [0]
    return go.Heatmap(z=z, x=panel[x].values, y=rows, coloraxis="coloraxis", hovertemplate=hover)
