"""Attention heads of a model that completes matrices, and what becomes of it when they are changed."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from plateaulens._registry import look_up
from plateaulens.plots.attention_maps import layer_maps
from plateaulens.plots.style import GRAY, PALETTE, distinct, stacked, stacked_style, styled

LINES = {"color": "rgba(128,128,128,0.6)", "width": 0.5}


def head_maps(atlas: Any) -> go.Figure:
    """The mean map of each head of each layer, with its label; lines part the rows of the matrix.

    Cells that are hidden in every matrix (structured masks) are marked above the keys. An atlas over steps gets a
    slider, and the labels of the last step.

    Args:
        atlas: of `head_atlas`.
    """
    stepped = atlas if "step" in atlas.dims else atlas.expand_dims(step=[0])
    maps = SimpleNamespace(pattern=stepped.pattern.values, steps=stepped.step.values.tolist())
    figure = layer_maps(maps)
    if "step" not in atlas.dims:
        figure.update_layout(sliders=[])
        figure.frames = []
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_layout(title="mean attention")
    last, cells = stepped.isel(step=-1), atlas.sizes["key"]
    for note, label in zip(figure.layout.annotations, last.label.values.flat):
        note.text = f"{note.text.replace('layer ', 'L').replace(', head ', 'H')}: {label}"
    edges = [i - 0.5 for i in range(atlas.attrs["cols"], cells, atlas.attrs["cols"])]
    hidden = np.flatnonzero(last.masked.values == 1)
    for row in range(1, atlas.sizes["layer"] + 1):
        for col in range(1, atlas.sizes["head"] + 1):
            for edge in edges:
                figure.add_shape(type="line", x0=edge, x1=edge, y0=-0.5, y1=cells - 0.5, line=LINES, row=row, col=col)
                figure.add_shape(type="line", y0=edge, y1=edge, x0=-0.5, x1=cells - 0.5, line=LINES, row=row, col=col)
            if len(hidden):
                marks = go.Scatter(x=hidden, y=np.full(len(hidden), -1.2), mode="markers", showlegend=False)
                marks.update(marker={"symbol": "square", "size": 4, "color": GRAY}, hovertemplate="cell %{x} is hidden")
                figure.add_trace(marks, row, col)
    return figure


def head_categories(atlas: Any) -> go.Figure:
    """How many times chance each head attends to a category of keys, and its mass when pointed at.

    The color is the ratio on a logarithmic scale: white is chance. The label's cell is outlined.

    Args:
        atlas: of `head_atlas`, of one step.

    Raises:
        ValueError: for an atlas of several steps.
    """
    if "step" in atlas.dims:
        raise ValueError("head_categories draws one step; choose one: atlas.sel(step=...)")
    heads = [f"L{layer}H{head}" for layer in atlas["layer"].values for head in atlas["head"].values]
    ratio = atlas.ratio.values.reshape(len(heads), -1)
    mass = atlas.mass.values.reshape(len(heads), -1)
    names = [str(c) for c in atlas.category.values]
    titles = [f"{name}<br>chance {chance:.3f}" for name, chance in zip(names, atlas.chance.values)]
    said = "%{y}, %{x}<br>mass %{customdata:.3f}, %{text} times chance<extra></extra>"
    shown = np.array([[f"{value:.1f}" for value in line] for line in ratio])
    heat = go.Heatmap(z=np.log2(np.maximum(ratio, 1 / 16)), x=titles, y=heads, customdata=mass, text=shown)
    heat.update(colorscale="RdBu", reversescale=True, zmin=-4, zmax=4, hovertemplate=said, texttemplate="%{text}")
    ticks = {"tickvals": [-4, -2, 0, 2, 4], "ticktext": ["1/16", "1/4", "1", "4", "16"]}
    figure = go.Figure(heat.update(colorbar={"thickness": 10, "title": "times chance"} | ticks))
    for i, label in enumerate(atlas.label.values.flat):
        for j in (j for j, name in enumerate(names) if name == label):
            box = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
            figure.add_shape(type="rect", line={"color": "#777777", "width": 2}, **box)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(showgrid=False)
    title = f"attention of {atlas.attrs['queries']} cells"
    return styled(figure, height=170 + 26 * len(heads), title=title)


def head_ablations(found: Any, name: str = "masked_loss") -> go.Figure:
    """A measurement without each head, layer or group, the modes side by side; the dashed line is the intact model.

    Args:
        found: of `pl.papers.matrix_completion.head_ablations`.
        name: which measurement.

    Raises:
        ValueError: for a measurement that was not taken.
    """
    grid = _variable(found, name)
    intact = float(grid.sel(ablated="intact").max())
    bars = grid.drop_sel(ablated="intact")
    figure = _bars(bars.ablated.values, {str(mode): bars.sel(mode=mode).values for mode in bars["mode"].values})
    figure.add_hline(y=intact, line={"color": GRAY, "dash": "dash"})
    figure.update_yaxes(title=name, rangemode="tozero")
    return styled(figure, height=380, title=f"{name} without heads (dashed: intact)", barmode="group")


def negation(found: Any) -> go.Figure:
    """How far the patched run on -X is from X and from -X: a panel for masked and one for observed cells.

    Dashed lines are the run on -X without a patch; the dotted one is how far an answer of exactly -X is from X.

    Args:
        found: of `patch_negated`.
    """
    places = [str(dim) for dim in found.distance.dims if dim in ("layer", "head")]
    flat = found.distance.stack(place=[*places, "positions"])
    names = [
        "".join(f"{dim[0].upper()}{i}" for dim, i in zip(places, key)) + f", {key[-1]}" for key in flat.place.values
    ]
    figure = stacked([f"at {cells} cells" for cells in found["cells"].values])
    for row, cells in enumerate(found["cells"].values, 1):
        for i, to in enumerate(found["to"].values):
            bar = go.Bar(x=names, y=flat.sel(cells=cells, to=to).values, name=f"distance to {to}")
            figure.add_trace(bar.update(marker_color=PALETTE[i], legendgroup=str(to), showlegend=row == 1), row, 1)
            level = float(found.unpatched.sel(to=to, cells=cells))
            figure.add_hline(y=level, line={"color": PALETTE[i], "dash": "dash"}, row=row, col=1)
        figure.add_hline(y=found.attrs["four_variance"], line={"color": GRAY, "dash": "dot"}, row=row, col=1)
    figure.update_yaxes(title="mean squared<br>difference", rangemode="tozero")
    title = "-X with the attention outputs of X at some positions of a layer (dashed: no patch, dotted: 4 Var)"
    figure = stacked_style(figure, 2, "", title=title, barmode="group")
    return figure.update_layout(height=560, margin_t=90)


def switching(found: Any, name: str = "masked_loss") -> go.Figure:
    """A measurement of two models as they are and with parts of each other.

    Args:
        found: of `switch`.
        name: which measurement.

    Raises:
        ValueError: for a measurement that was not taken.
    """
    grid = _variable(found, name)
    parts = {"nothing" if p == "none" else str(p): grid.sel(parts=p).values for p in grid.parts.values}
    figure = _bars([f"the model {into}" for into in grid["into"].values], parts)
    figure.update_yaxes(title=name, rangemode="tozero")
    title = f"{name} with parts of the other model"
    return styled(figure, height=360, title=title, barmode="group", legend={"title": "exchanged"})


def copying(found: Any) -> go.Figure:
    """Over training, how well shown cells are copied, and how near hidden ones are to the value of their token.

    Args:
        found: of `copy_check`.
    """
    panels = {"observed_loss": "loss of shown cells", "copied_loss": "hidden cells: squared distance to their token"}
    figure = stacked(list(panels.values()))
    for row, name in enumerate(panels, 1):
        for i, value in enumerate(found.value.values):
            line = go.Scatter(x=found.step.values, y=found[name].sel(value=value).values, name=str(value))
            line.update(mode="lines+markers", line=distinct(i), legendgroup=str(value), showlegend=row == 1)
            figure.add_trace(line, row, 1)
    figure.update_yaxes(type="log")
    return stacked_style(figure, 2, hovermode="x unified", legend_title="shown")


def _variable(found: Any, name: str) -> Any:
    return look_up("measurement", name, {str(key): grid for key, grid in found.data_vars.items()})


def _bars(x: Iterable[Any], series: dict[str, Any]) -> go.Figure:
    x = [str(label) for label in x]
    bars = [go.Bar(x=x, y=y, name=name, marker_color=PALETTE[i]) for i, (name, y) in enumerate(series.items())]
    return go.Figure(bars)
