"""Embeddings of tokens and positions: norms, principal components, t-SNE (arXiv 2410.22244, fig. 7)."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from jaxtyping import Float
from plotly.subplots import make_subplots

from plateaulens.plots.style import BLUE, DASHES, GRAY, LEGEND, ORANGE, distinct, styled

BIN_COLORS = (
    "#a50f15",
    "#d55e00",
    "#e69f00",
    "#56b4e9",
    "#0072b2",
    "#6a51a3",
)  # from the smallest value to the largest


def token_embeddings(tokens: xr.Dataset) -> go.Figure:
    """Norms of token embeddings by value, and their first two principal components.

    Six colors are equal parts of the range of values; those of the paper are 0.5 wide.

    Args:
        tokens: Result of `token_embeddings` for one model.
    """
    shares = [f"component {i} ({share:.0%})" for i, share in zip((1, 2), tokens.explained.values)]
    symmetry = f", norm(v) with norm(-v): {float(tokens.symmetry):.2f}" if np.isfinite(tokens.symmetry) else ""
    titles = [f"norm of token embeddings{symmetry}", "principal components"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    value = tokens.value.values
    _add_tokens(figure, value, tokens.norm.values, value, 1, legend=True)
    first, second = tokens.component.values.T
    _add_tokens(figure, first, second, value, 2, legend=False)
    figure.update_xaxes(title="value", col=1)
    figure.update_yaxes(title="norm", rangemode="tozero", col=1)
    figure.update_xaxes(title=shares[0], col=2)
    figure.update_yaxes(title=shares[1], col=2)
    return styled(figure, height=420, legend=LEGEND, hovermode="closest")


def token_progress(components: xr.DataArray) -> go.Figure:
    """Token embeddings at several steps along the principal axes of the last one; colors as in `token_embeddings`.

    Args:
        components: Result of `token_progress`.
    """
    steps = components.step.values.tolist()
    figure = make_subplots(1, len(steps), subplot_titles=[f"step {s}" for s in steps], shared_yaxes="all")
    for col in range(len(steps)):
        first, second = components.isel(step=col).values.T
        _add_tokens(figure, first, second, components.value.values, col + 1, legend=col == 0)
    figure.update_xaxes(title="axis 1", matches="x")
    figure.update_yaxes(title="axis 2", col=1)
    return styled(figure, height=380, legend=LEGEND, hovermode="closest", title="token embeddings").update_layout(
        margin_t=90
    )


def position_embeddings(positions: xr.Dataset) -> go.Figure:
    """t-SNE and norms of position embeddings, and the share of their variance that rows and columns explain.

    For several steps (`map_checkpoints`): t-SNE at each step, and below it the shares of variance over training.

    Args:
        positions: Result of `position_embeddings`.
    """
    if "step" in positions.dims:
        return _position_steps(positions)
    titles = ["t-SNE of position embeddings", "norm", "share of variance explained"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.1)
    _add_positions(figure, positions, 1, legend=True)
    grid = positions.norm.values.reshape(int(positions.row.max()) + 1, -1)
    heat = go.Heatmap(z=grid, colorscale="Viridis", texttemplate="%{z:.2f}", showscale=False, xgap=1, ygap=1)
    figure.add_trace(heat, 1, 2)
    for name, color in (("explained", BLUE), ("chance", GRAY)):
        bars = go.Bar(x=positions.group.values, y=positions[name].values, name=name, marker_color=color)
        figure.add_trace(bars, 1, 3)
    figure.update_xaxes(showticklabels=False, col=1)
    figure.update_yaxes(showticklabels=False, col=1)
    figure.update_xaxes(title="column", dtick=1, showgrid=False, col=2)
    figure.update_yaxes(title="row", dtick=1, showgrid=False, autorange="reversed", col=2)
    figure.update_yaxes(range=[0, 1], col=3)
    return styled(figure, height=420, legend=LEGEND, hovermode="closest")


def _position_steps(positions: xr.Dataset) -> go.Figure:
    steps = positions.step.values.tolist()
    spans: list[list[Any]] = [[{}] * len(steps), [{"colspan": len(steps)}] + [None] * (len(steps) - 1)]
    titles = [*(f"step {s}" for s in steps), "share of variance explained"]
    figure = make_subplots(2, len(steps), specs=spans, subplot_titles=titles, vertical_spacing=0.14)
    for i in range(len(steps)):
        _add_positions(figure, positions.isel(step=i), i + 1, legend=i == 0)
    for name, dash in zip(("explained", "chance"), DASHES):
        for group, color in zip(positions.group.values, (ORANGE, BLUE)):
            curve = go.Scatter(
                x=steps, y=positions[name].sel(group=group).values, name=f"{name} by {group}", mode="lines"
            )
            figure.add_trace(curve.update(line={"color": color, "dash": dash}), 2, 1)
    figure.update_xaxes(showticklabels=False, row=1)
    figure.update_yaxes(showticklabels=False, row=1)
    figure.update_xaxes(title="step", row=2)
    figure.update_yaxes(range=[0, 1], row=2)
    title = "position embeddings, t-SNE"
    return styled(figure, height=560, legend={**LEGEND, "y": -0.15}, hovermode="closest", title=title).update_layout(
        margin_t=90
    )


def _add_positions(figure: go.Figure, positions: xr.Dataset, panel: int, *, legend: bool) -> None:
    """Add a mark for each position, colored by its column and with the number of its row."""
    for col in np.unique(positions.col.values):
        in_column = positions.isel(pos=positions.col.values == col)
        marks = go.Scatter(
            x=in_column.component.values[:, 0],
            y=in_column.component.values[:, 1],
            mode="markers+text",
            name=f"column {col}",
        )
        marks.update(text=in_column.row.values, textposition="middle center", textfont={"color": "white", "size": 10})
        marks.update(marker={"size": 16, "color": distinct(int(col))["color"]}, legendgroup=f"column {col}")
        marks.update(hovertemplate=f"row %{{text}}, column {col}<extra></extra>", showlegend=legend)
        figure.add_trace(marks, 1, panel)


def _add_tokens(
    figure: go.Figure,
    x: Float[np.ndarray, " token"],
    y: Float[np.ndarray, " token"],
    value: Float[np.ndarray, " token"],
    panel: int,
    *,
    legend: bool,
) -> None:
    """Add a mark for each token, colored by its value."""
    edges = np.linspace(value.min(), value.max(), len(BIN_COLORS) + 1)
    bins = np.digitize(value, edges[1:-1])
    for i, color in enumerate(BIN_COLORS):
        in_bin = bins == i
        name = f"{edges[i]:.3g} to {edges[i + 1]:.3g}"
        marks = go.Scatter(x=x[in_bin], y=y[in_bin], mode="markers", name=name, legendgroup=name, showlegend=legend)
        marks.update(marker={"color": color, "size": 7}, customdata=value[in_bin])
        figure.add_trace(marks.update(hovertemplate="value %{customdata:.3g}<extra></extra>"), 1, panel)
