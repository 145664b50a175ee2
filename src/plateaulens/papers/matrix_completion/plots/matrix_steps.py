"""Matrices as predicted at several steps."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from plateaulens.plots.attention_maps import step_slider
from plateaulens.plots.style import GRAY, styled


def matrix_steps(grids: xr.Dataset, matrix: int = 0) -> go.Figure:
    """One matrix as observed, as predicted at each step (with a slider), and its true entries; masked cells are framed.

    Args:
        grids: Result of `completions`.
        matrix: Index of the matrix in the batch.

    Raises:
        ValueError: For an index outside the batch.
    """
    if not 0 <= matrix < grids.sizes["matrix"]:
        raise ValueError(f"matrix must be in 0..{grids.sizes['matrix'] - 1}, got {matrix}")
    grid = grids.isel(matrix=matrix)
    true, observed, predicted = grid.true.values, grid.observed.values, grid.predicted.values
    limit = float(np.abs(true).max() or 1)
    steps = [int(step) for step in grids.step]

    def heat(z: np.ndarray) -> go.Heatmap:
        return go.Heatmap(z=z, zmin=-limit, zmax=limit, colorscale="RdBu", texttemplate="%{z:.2f}")

    columns = (np.where(observed, true, np.nan), predicted[0], true)
    figure = make_subplots(1, 3, subplot_titles=["observed", "predicted", "true"], horizontal_spacing=0.06)
    for col, z in enumerate(columns, 1):
        figure.add_trace(heat(z).update(showscale=col == 3), 1, col)
        for i, j in np.argwhere(~observed):
            box = {"x0": j - 0.46, "x1": j + 0.46, "y0": i - 0.46, "y1": i + 0.46}
            figure.add_shape(type="rect", line={"color": GRAY, "width": 2}, row=1, col=col, **box)
    figure.frames = [go.Frame(data=[heat(z)], name=str(s), traces=[1]) for s, z in zip(steps, predicted, strict=True)]
    figure.update_xaxes(constrain="domain", showticklabels=False)
    figure.update_yaxes(autorange="reversed", constrain="domain", showticklabels=False)
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    styled(figure, height=430, title="a matrix, masked cells framed", sliders=[step_slider(steps)])
    return figure.update_layout(margin_t=90)
