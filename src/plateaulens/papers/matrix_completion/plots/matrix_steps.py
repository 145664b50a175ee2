"""Matrix completion: the two phases of its loss, and the matrices themselves."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from plateaulens.plots.attention_maps import step_slider
from plateaulens.plots.inputs import metrics_frame
from plateaulens.plots.style import BLUE, GRAY, GREEN, ORANGE, stacked, stacked_style, styled

LOSSES = {"loss": BLUE, "observed_loss": GREEN, "masked_loss": ORANGE}


def completion(run: Any, plateau: Any = None) -> go.Figure:
    """Copying, then completing: the loss of all, of shown and of hidden cells over training (arXiv 2410.22244, fig. 2).

    Args:
        run: a Run or a metrics frame.
        plateau: from `find_plateau`; shades the plateau and draws its analytic level and the drop.

    Raises:
        ValueError: when the losses of shown and hidden cells were not recorded.
    """
    metrics = metrics_frame(run)
    if missing := [name for name in LOSSES if name not in metrics]:
        raise ValueError(f"{', '.join(missing)} was not recorded; record matrix completion with its standard watch")
    panels = ["mean squared error"] + ["mean |output| at hidden cells"] * ("masked_size" in metrics)
    figure = stacked(panels)
    for name, color in LOSSES.items():
        line = {"color": color, "width": 3 if name == "loss" else 1.5}
        figure.add_trace(go.Scatter(x=metrics.index, y=metrics[name], name=name, mode="lines", line=line), 1, 1)
    if "masked_size" in metrics:
        curve = go.Scatter(x=metrics.index, y=metrics.masked_size, name="masked_size", mode="lines")
        figure.add_trace(curve.update(line={"color": GRAY}), 2, 1)
    figure.update_yaxes(type="log", exponentformat="power", row=1, col=1)
    if plateau is not None:
        dashed = {"color": BLUE, "dash": "dash", "width": 1}
        says = {"annotation_text": f"analytic plateau {plateau.level:.4f}", "annotation_position": "top right"}
        figure.add_hline(plateau.level, line=dashed, row=1, col=1, **says)
        if plateau.start is not None:
            end = int(metrics.index.max()) if plateau.end is None else plateau.end
            figure.add_vrect(plateau.start, end, fillcolor=GRAY, opacity=0.15, line_width=0, row="all", col=1)
        if plateau.drop is not None:
            figure.add_vline(plateau.drop, line={"color": GRAY, "dash": "dot"}, row="all", col=1)
    return stacked_style(figure, len(panels), hovermode="x unified")


def matrix_steps(found: xr.Dataset, matrix: int = 0) -> go.Figure:
    """One matrix: what is shown, what the model makes of it at each step (with a slider), and the truth.

    Hidden cells are framed.

    Args:
        found: from `analysis.completions`.
        matrix: which of the batch.

    Raises:
        ValueError: for a matrix that is not there.
    """
    if not 0 <= matrix < found.sizes["matrix"]:
        raise ValueError(f"matrix must lie in 0..{found.sizes['matrix'] - 1}, got {matrix}")
    one = found.isel(matrix=matrix)
    true, seen, predicted = one.true.values, one.observed.values, one.predicted.values
    limit = float(np.abs(true).max() or 1)
    steps = [int(step) for step in found.step]

    def heat(z: np.ndarray) -> go.Heatmap:
        return go.Heatmap(z=z, zmin=-limit, zmax=limit, colorscale="RdBu", texttemplate="%{z:.2f}")

    columns = (np.where(seen, true, np.nan), predicted[0], true)
    figure = make_subplots(1, 3, subplot_titles=["shown", "the model's", "true"], horizontal_spacing=0.06)
    for col, z in enumerate(columns, 1):
        figure.add_trace(heat(z).update(showscale=col == 3), 1, col)
        for i, j in np.argwhere(~seen):
            box = {"x0": j - 0.46, "x1": j + 0.46, "y0": i - 0.46, "y1": i + 0.46}
            figure.add_shape(type="rect", line={"color": GRAY, "width": 2}, row=1, col=col, **box)
    figure.frames = [go.Frame(data=[heat(z)], name=str(s), traces=[1]) for s, z in zip(steps, predicted, strict=True)]
    figure.update_xaxes(constrain="domain", showticklabels=False)
    figure.update_yaxes(autorange="reversed", constrain="domain", showticklabels=False)
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    styled(figure, height=430, title="a matrix, hidden cells framed", sliders=[step_slider(steps)])
    return figure.update_layout(margin_t=90)
