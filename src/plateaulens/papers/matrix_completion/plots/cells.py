"""Matrices cell by cell: what probes read after each layer, and other matrices than those of the training."""

import re

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from plateaulens.plots.style import BLUE, GRAY, LEGEND, ORANGE, distinct, styled


def cell_probes(found: xr.Dataset) -> go.Figure:
    """What probes read after each layer: their loss beside that of guessing 0, and the cosine of vectors (fig. 6).

    Entries of shown and of hidden cells are told apart, dotted and dashed.

    Args:
        found: from `analysis.probe_cells`, of one model.

    Raises:
        ValueError: for several steps.
    """
    if "step" in found.dims:
        raise ValueError("cell_probes draws one step; choose one: found.sel(step=...)")
    titles = ["test loss / loss of guessing 0", "mean |cosine| with the truth"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    layers = [_named(str(site)) for site in found.site.values]
    for i, name in enumerate(found.feature.values):
        one, line = found.sel(feature=name), distinct(i)
        for kind, dash in (("", "solid"), ("observed_", "dot"), ("masked_", "dash")):
            if kind and name != "element":
                continue
            said = f"{name}, {kind[:-1]} cells" if kind else name
            y = (one[f"{kind}loss"] / one.zero_loss).values
            curve = go.Scatter(x=layers, y=y, name=said, mode="lines+markers", line={**line, "dash": dash})
            figure.add_trace(curve.update(legendgroup=said), 1, 1)
        if one.absolute_cosine.notnull().any():
            curve = go.Scatter(
                x=layers, y=one.absolute_cosine.values, mode="lines+markers", line=line, showlegend=False
            )
            figure.add_trace(curve.update(name=name, legendgroup=name), 1, 2)
    figure.update_xaxes(title="after")
    figure.update_yaxes(rangemode="tozero", col=1)
    figure.update_yaxes(range=[0, 1.02], col=2)
    return styled(figure, height=420, legend=LEGEND)


def shifts(found: xr.Dataset, x: str = "shift") -> go.Figure:
    """Losses of the model and of nuclear-norm minimization against what is shifted, and nuclear norms (figs. 3, 19).

    Errors are on logarithmic axes; names in place of numbers are drawn as marks without lines.

    Args:
        found: from `analysis.out_of_distribution`.
        x: what is shifted, for the axis.
    """
    titles = ["squared error, all cells", "squared error, hidden cells", "nuclear norm"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.08)
    numbers = found["shift"].dtype.kind in "if"
    where = found["shift"].values.tolist()
    mode = "lines+markers" if numbers else "markers"
    for panel, (name, anchor) in enumerate((("loss", ""), ("masked_loss", "zero_loss"), ("size", "true_size")), 1):
        lines = {str(by): found[name].sel(by=by).values for by in found.by.values}
        if anchor:
            lines["guessing 0" if anchor == "zero_loss" else "true matrices"] = found[anchor].values
        for (label, y), color in zip(lines.items(), (BLUE, ORANGE, GRAY)):
            line = {"color": color, "dash": "dot" if color == GRAY else "solid"}
            curve = go.Scatter(x=where, y=y, name=label, mode=mode, line=line, marker={"size": 7, "color": color})
            first = panel == 1 or color == GRAY
            figure.add_trace(curve.update(legendgroup=label, showlegend=first), 1, panel)
    figure.update_xaxes(title=x, **({} if numbers else {"type": "category"}))
    for panel in (1, 2):
        figure.update_yaxes(type="log", exponentformat="power", nticks=6, col=panel)
    figure.update_yaxes(rangemode="tozero", col=3)
    return styled(figure, height=420, legend=LEGEND)


def _named(site: str) -> str:
    block = re.match(r"blocks\.(\d+)\.", site)
    return f"layer {int(block[1])}" if block else site
