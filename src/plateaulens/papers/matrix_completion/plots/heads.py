"""Attention heads, and losses with ablated heads, patched outputs, swapped weights or other tokens in masked cells."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from plateaulens._registry import look_up
from plateaulens.plots.attention_maps import layer_maps
from plateaulens.plots.style import GRAY, PALETTE, distinct, stacked, stacked_style, styled

LINES = {"color": "rgba(128,128,128,0.6)", "width": 0.5}


def head_maps(atlas: xr.Dataset) -> go.Figure:
    """Mean attention pattern of each head, titled by its label, with lines between the rows of the matrix.

    Cells that are masked in every matrix (structured masks) are marked above the keys. An atlas of several steps gets a
    slider, and the labels of the last step.

    Args:
        atlas: Result of `head_atlas`.
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
    masked = np.flatnonzero(last.masked.values == 1)
    for row in range(1, atlas.sizes["layer"] + 1):
        for col in range(1, atlas.sizes["head"] + 1):
            for edge in edges:
                figure.add_shape(type="line", x0=edge, x1=edge, y0=-0.5, y1=cells - 0.5, line=LINES, row=row, col=col)
                figure.add_shape(type="line", y0=edge, y1=edge, x0=-0.5, x1=cells - 0.5, line=LINES, row=row, col=col)
            if len(masked):
                marks = go.Scatter(x=masked, y=np.full(len(masked), -1.2), mode="markers", showlegend=False)
                marks.update(marker={"symbol": "square", "size": 4, "color": GRAY}, hovertemplate="cell %{x} is masked")
                figure.add_trace(marks, row, col)
    return figure


def head_categories(atlas: xr.Dataset) -> go.Figure:
    """Attention of each head to each category of keys relative to chance, on a logarithmic color scale.

    White is chance. The category that labels a head is outlined.

    Args:
        atlas: Result of `head_atlas` for one step.

    Raises:
        ValueError: For an atlas of several steps.
    """
    if "step" in atlas.dims:
        raise ValueError("head_categories draws one step; choose one: atlas.sel(step=...)")
    heads = [f"L{layer}H{head}" for layer in atlas["layer"].values for head in atlas["head"].values]
    ratio = atlas.ratio.values.reshape(len(heads), -1)
    mass = atlas.mass.values.reshape(len(heads), -1)
    names = [str(c) for c in atlas.category.values]
    titles = [f"{name}<br>chance {chance:.3f}" for name, chance in zip(names, atlas.chance.values)]
    hover = "%{y}, %{x}<br>mass %{customdata:.3f}, %{text} times chance<extra></extra>"
    labels = np.array([[f"{value:.1f}" for value in line] for line in ratio])
    heat = go.Heatmap(z=np.log2(np.maximum(ratio, 1 / 16)), x=titles, y=heads, customdata=mass, text=labels)
    heat.update(colorscale="RdBu", reversescale=True, zmin=-4, zmax=4, hovertemplate=hover, texttemplate="%{text}")
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


def head_ablations(ablations: xr.Dataset, metric: str = "masked_loss") -> go.Figure:
    """A metric without each head, layer or group, by mode; the dashed line is the intact model.

    Args:
        ablations: Result of `plateaulens.papers.matrix_completion.head_ablations`.
        metric: Name of one of its metrics.

    Raises:
        ValueError: For a metric that it does not have.
    """
    grid = _metric(ablations, metric)
    intact = float(grid.sel(ablated="intact").max())
    bars = grid.drop_sel(ablated="intact")
    figure = _bars(bars.ablated.values, {str(mode): bars.sel(mode=mode).values for mode in bars["mode"].values})
    figure.add_hline(y=intact, line={"color": GRAY, "dash": "dash"})
    figure.update_yaxes(title=metric, rangemode="tozero")
    return styled(figure, height=380, title=f"{metric} without heads (dashed: intact)", barmode="group")


def negated_patches(patches: xr.Dataset) -> go.Figure:
    """Distances of the patched run on -X to X and to -X: a panel for masked and one for observed cells.

    Dashed lines are the run on -X without a patch; the dotted line is the mean squared distance of X and -X.

    Args:
        patches: Result of `patch_negated`.
    """
    axes = [str(dim) for dim in patches.distance.dims if dim in ("layer", "head")]
    flat = patches.distance.stack(place=[*axes, "positions"])
    names = ["".join(f"{dim[0].upper()}{i}" for dim, i in zip(axes, key)) + f", {key[-1]}" for key in flat.place.values]
    figure = stacked([f"at {cells} cells" for cells in patches["cells"].values])
    for row, cells in enumerate(patches["cells"].values, 1):
        for i, to in enumerate(patches["to"].values):
            bar = go.Bar(x=names, y=flat.sel(cells=cells, to=to).values, name=f"distance to {to}")
            figure.add_trace(bar.update(marker_color=PALETTE[i], legendgroup=str(to), showlegend=row == 1), row, 1)
            level = float(patches.unpatched.sel(to=to, cells=cells))
            figure.add_hline(y=level, line={"color": PALETTE[i], "dash": "dash"}, row=row, col=1)
        figure.add_hline(y=patches.attrs["four_variance"], line={"color": GRAY, "dash": "dot"}, row=row, col=1)
    figure.update_yaxes(title="mean squared<br>difference", rangemode="tozero")
    title = "-X with the attention outputs of X at some positions of a layer (dashed: no patch, dotted: 4 Var)"
    figure = stacked_style(figure, 2, "", title=title, barmode="group")
    return figure.update_layout(height=560, margin_t=90)


def swapped_parts(swaps: xr.Dataset, metric: str = "masked_loss") -> go.Figure:
    """A metric of two models as they are and with parts of each other's weights.

    Args:
        swaps: Result of `swap_parts`.
        metric: Name of one of its metrics.

    Raises:
        ValueError: For a metric that it does not have.
    """
    grid = _metric(swaps, metric)
    parts = {"nothing" if p == "none" else str(p): grid.sel(parts=p).values for p in grid.parts.values}
    figure = _bars([f"the model {which}" for which in grid["model"].values], parts)
    figure.update_yaxes(title=metric, rangemode="tozero")
    title = f"{metric} with parts of the other model"
    return styled(figure, height=360, title=title, barmode="group", legend={"title": "swapped"})


def copied_tokens(losses: xr.Dataset) -> go.Figure:
    """Losses over training when masked cells have the token of a value: over observed cells, and to that value.

    Args:
        losses: Result of `copy_check`.
    """
    panels = {
        "observed_loss": "loss over observed cells",
        "copied_loss": "masked cells: squared distance to their token",
    }
    figure = stacked(list(panels.values()))
    for row, name in enumerate(panels, 1):
        for i, value in enumerate(losses.value.values):
            line = go.Scatter(x=losses.step.values, y=losses[name].sel(value=value).values, name=str(value))
            line.update(mode="lines+markers", line=distinct(i), legendgroup=str(value), showlegend=row == 1)
            figure.add_trace(line, row, 1)
    figure.update_yaxes(type="log")
    return stacked_style(figure, 2, hovermode="x unified", legend_title="token")


def _metric(dataset: xr.Dataset, name: str) -> xr.DataArray:
    return look_up("metric", name, {str(key): grid for key, grid in dataset.data_vars.items()})


def _bars(x: Iterable[Any], series: dict[str, Any]) -> go.Figure:
    x = [str(label) for label in x]
    bars = [go.Bar(x=x, y=y, name=name, marker_color=PALETTE[i]) for i, (name, y) in enumerate(series.items())]
    return go.Figure(bars)
