"""Embeddings of tokens and positions: norms, components, maps (arXiv 2410.22244, fig. 7)."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from jaxtyping import Float
from plotly.subplots import make_subplots

from plateaulens.plots.style import BLUE, DASHES, GRAY, LEGEND, ORANGE, distinct, styled

BINS = ("#a50f15", "#d55e00", "#e69f00", "#56b4e9", "#0072b2", "#6a51a3")  # from the least value to the greatest


def token_embeddings(found: xr.Dataset) -> go.Figure:
    """The norm of each token's embedding by its value, and its two principal components.

    Six colors for as many equal parts of the range of values; the paper's are 0.5 wide.

    Args:
        found: from `analysis.token_embeddings`, of one model.
    """
    shares = [f"component {i} ({share:.0%})" for i, share in zip((1, 2), found.explained.values)]
    symmetry = f", norm(v) with norm(-v): {float(found.symmetry):.2f}" if np.isfinite(found.symmetry) else ""
    titles = [f"norm of token embeddings{symmetry}", "principal components"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    value = found.value.values
    _add(figure, value, found.norm.values, value, 1, True)
    first, second = found.component.values.T
    _add(figure, first, second, value, 2, False)
    figure.update_xaxes(title="value", col=1)
    figure.update_yaxes(title="norm", rangemode="tozero", col=1)
    figure.update_xaxes(title=shares[0], col=2)
    figure.update_yaxes(title=shares[1], col=2)
    return styled(figure, height=420, legend=LEGEND, hovermode="closest")


def token_progress(found: xr.DataArray) -> go.Figure:
    """Token embeddings at several steps along the principal axes of the last one; colors as in `token_embeddings`.

    Args:
        found: from `analysis.token_progress`.
    """
    steps = found.step.values.tolist()
    figure = make_subplots(1, len(steps), subplot_titles=[f"step {s}" for s in steps], shared_yaxes="all")
    for col in range(len(steps)):
        first, second = found.isel(step=col).values.T
        _add(figure, first, second, found.value.values, col + 1, col == 0)
    figure.update_xaxes(title="axis 1", matches="x")
    figure.update_yaxes(title="axis 2", col=1)
    return styled(figure, height=380, legend=LEGEND, hovermode="closest", title="token embeddings").update_layout(
        margin_t=90
    )


def position_embeddings(found: xr.Dataset) -> go.Figure:
    """t-SNE of the position embeddings, their norms, and what rows and columns explain of them beside chance.

    Of several steps (`map_checkpoints`) a map a step, and below them what is explained over training.

    Args:
        found: from `analysis.position_embeddings`.
    """
    if "step" in found.dims:
        return _position_steps(found)
    titles = ["t-SNE of position embeddings", "norm", "share of variance explained"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.1)
    _add_map(figure, found, 1, True)
    grid = found.norm.values.reshape(int(found.row.max()) + 1, -1)
    heat = go.Heatmap(z=grid, colorscale="Viridis", texttemplate="%{z:.2f}", showscale=False, xgap=1, ygap=1)
    figure.add_trace(heat, 1, 2)
    for name, color in (("explained", BLUE), ("chance", GRAY)):
        bars = go.Bar(x=found.group.values, y=found[name].values, name=name, marker_color=color)
        figure.add_trace(bars, 1, 3)
    figure.update_xaxes(showticklabels=False, col=1)
    figure.update_yaxes(showticklabels=False, col=1)
    figure.update_xaxes(title="column", dtick=1, showgrid=False, col=2)
    figure.update_yaxes(title="row", dtick=1, showgrid=False, autorange="reversed", col=2)
    figure.update_yaxes(range=[0, 1], col=3)
    return styled(figure, height=420, legend=LEGEND, hovermode="closest")


def _position_steps(found: xr.Dataset) -> go.Figure:
    steps = found.step.values.tolist()
    spans: list[list[Any]] = [[{}] * len(steps), [{"colspan": len(steps)}] + [None] * (len(steps) - 1)]
    titles = [*(f"step {s}" for s in steps), "share of variance explained"]
    figure = make_subplots(2, len(steps), specs=spans, subplot_titles=titles, vertical_spacing=0.14)
    for i in range(len(steps)):
        _add_map(figure, found.isel(step=i), i + 1, i == 0)
    for name, dash in zip(("explained", "chance"), DASHES):
        for group, color in zip(found.group.values, (ORANGE, BLUE)):
            curve = go.Scatter(x=steps, y=found[name].sel(group=group).values, name=f"{name} by {group}", mode="lines")
            figure.add_trace(curve.update(line={"color": color, "dash": dash}), 2, 1)
    figure.update_xaxes(showticklabels=False, row=1)
    figure.update_yaxes(showticklabels=False, row=1)
    figure.update_xaxes(title="step", row=2)
    figure.update_yaxes(range=[0, 1], row=2)
    title = "position embeddings, t-SNE"
    return styled(figure, height=560, legend={**LEGEND, "y": -0.15}, hovermode="closest", title=title).update_layout(
        margin_t=90
    )


def _add_map(figure: go.Figure, found: xr.Dataset, panel: int, legend: bool) -> None:
    """A mark a position: its column by color, its row by number."""
    for col in np.unique(found.col.values):
        some = found.isel(pos=found.col.values == col)
        marks = go.Scatter(
            x=some.component.values[:, 0], y=some.component.values[:, 1], mode="markers+text", name=f"column {col}"
        )
        marks.update(text=some.row.values, textposition="middle center", textfont={"color": "white", "size": 10})
        marks.update(marker={"size": 16, "color": distinct(int(col))["color"]}, legendgroup=f"column {col}")
        marks.update(hovertemplate=f"row %{{text}}, column {col}<extra></extra>", showlegend=legend)
        figure.add_trace(marks, 1, panel)


def _add(
    figure: go.Figure,
    x: Float[np.ndarray, " token"],
    y: Float[np.ndarray, " token"],
    value: Float[np.ndarray, " token"],
    panel: int,
    legend: bool,
) -> None:
    """Marks in six colors by value."""
    edges = np.linspace(value.min(), value.max(), len(BINS) + 1)
    which = np.digitize(value, edges[1:-1])
    for i, color in enumerate(BINS):
        some = which == i
        name = f"{edges[i]:.3g} to {edges[i + 1]:.3g}"
        marks = go.Scatter(x=x[some], y=y[some], mode="markers", name=name, legendgroup=name, showlegend=legend)
        marks.update(marker={"color": color, "size": 7}, customdata=value[some])
        figure.add_trace(marks.update(hovertemplate="value %{customdata:.3g}<extra></extra>"), 1, panel)
