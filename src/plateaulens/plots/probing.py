"""Figures of probes over training and of the ablation of a feature."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from plateaulens.plots.inputs import metrics_frame
from plateaulens.plots.steps_axis import add_curve, step_axes
from plateaulens.plots.style import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, distinct, styled

THIRD_STYLES = {  # color and marker for each third of a feature's offsets
    "first": {"color": BLUE, "symbol": "circle"},
    "middle": {"color": ORANGE, "symbol": "diamond"},
    "last": {"color": GREEN, "symbol": "square"},
}
CONTROLS = {
    "gaussian": "Gaussian",
    "shuffled": "shuffled labels",
    "variance": "equal variance",
    "orthogonal": "orthogonal",
}
NO_BAND = pd.DataFrame({"low": [], "high": []}, dtype=float)


def probes(over: Any, run: Any = None, plateau: Any = None, *, feature: str | None = None) -> go.Figure:
    """Losses of probes over training, below the loss curve of the model; log axis of steps with a separate step 0.

    A line for each third of the feature's offsets (see `thirds`); dotted, the same in the untrained network. A feature
    is quiet if its line falls below the dotted one while the loss is on its plateau.

    Args:
        over: the Dataset of `probe_checkpoints`.
        run: a Run or a DataFrame of metrics by step, whose `loss` is drawn.
        plateau: the plateau to shade, with its level dashed and the drop dotted.
        feature: name of the feature, if `over` has several.

    Raises:
        ValueError: if `over` has several features and none is named, or if nothing varies in any third.
    """
    from plateaulens.probing.verdict import thirds  # imports torch, which other figures do not need

    over = _of_one_feature(over, feature)
    table = thirds(over)
    known = [third for third in THIRD_STYLES if not np.isnan(table.loss.sel(third=third)).all()]
    if not known:
        raise ValueError("there is nothing to draw: the feature varies at no offset")
    loss = pd.Series(dtype=float) if run is None else metrics_frame(run).loss.dropna()
    figure = go.Figure()
    steps = loss.index.union(pd.Index(over.step.values))
    axes = step_axes(figure, steps)
    lower, upper = ("y", "y2") if len(loss) else ("y", None)
    for third in known:
        curve = table.loss.sel(third=third).to_series().dropna()
        add_curve(
            figure, curve.rename(f"{third} third"), NO_BAND, {**THIRD_STYLES[third], "dash": "solid"}, axes, lower
        )
        _add_untrained(figure, third, float(table.baseline.sel(third=third).isel(step=0)), steps, axes[0], lower)
    figure.add_scatter(  # an entry in the legend for all dotted lines
        x=[None], y=[None], mode="lines", line={"color": GRAY, "dash": "dot"}, name="untrained network"
    )
    left = axes[1] if 0 in steps else axes[0]
    below = {"title": f"probes, test loss ({_unit(over)})", "type": "log", "dtick": 1, "exponentformat": "power"}
    figure.update_layout(yaxis={**below, "anchor": left, "domain": [0, 0.56 if upper else 1]})
    if upper:
        add_curve(figure, loss.rename("held-out loss"), NO_BAND, {"color": PURPLE, "dash": "solid"}, axes, upper)
        figure.update_layout(
            yaxis2={"title": "loss (nats)", "anchor": left, "domain": [0.62, 1], "rangemode": "tozero"}
        )
    if plateau is not None:
        _mark(figure, plateau, max(steps), upper)
    height = 560 if upper else 400
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -80 / height}
    styled(figure, height=height, hovermode="closest", legend=legend, showlegend=True)
    return figure.update_layout(margin={"t": 30, "l": 70})


def _of_one_feature(over: Any, feature: str | None) -> Any:
    """The probes of the named feature, or all if there is no axis of features."""
    if "feature" not in over.dims:
        return over
    if feature not in over.feature.values:
        raise ValueError(f"choose the feature= to draw from {over.feature.values.tolist()}; got {feature!r}")
    return over.sel(feature=feature)


def _unit(over: Any) -> str:
    """The unit of the losses; with several features, those of classes have an R2 too, which is NaN."""
    return "squared error" if "r2" in over and over.r2.notnull().any() else "nats"


def _add_untrained(figure: go.Figure, third: str, loss: float, steps: pd.Index, xaxis: str, yaxis: str) -> None:
    """A dotted line at the loss of the untrained network, over all steps after 0."""
    ends = [min(s for s in steps if s > 0), max(steps)] if max(steps) > 0 else []
    line = {"color": THIRD_STYLES[third]["color"], "dash": "dot", "width": 1.5}
    label = {"name": f"{third} third, untrained network", "legendgroup": f"{third} third", "showlegend": False}
    figure.add_scatter(x=ends, y=[loss] * len(ends), mode="lines", line=line, xaxis=xaxis, yaxis=yaxis, **label)


def _mark(figure: go.Figure, plateau: Any, last: int, loss: str | None) -> None:
    """The plateau behind everything; its level on the y axis of the loss."""
    whole = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    if plateau.start is not None:
        end = last if plateau.end is None else plateau.end
        figure.add_shape(
            type="rect", x0=max(plateau.start, 1), x1=end, fillcolor=GRAY, opacity=0.18, line_width=0, **whole
        )
    if plateau.drop is not None:
        line = {"color": GRAY, "dash": "dot", "width": 1}
        figure.add_shape(type="line", x0=plateau.drop, x1=plateau.drop, line=line, **whole)
    if loss is not None and np.isfinite(plateau.level):
        line = {"color": GRAY, "dash": "dash", "width": 1}
        across = {"xref": "paper", "yref": loss, "y0": plateau.level, "y1": plateau.level}
        figure.add_shape(type="line", x0=0, x1=1, line=line, **across)
        text = {"text": f"analytic plateau {plateau.level:.4f}", "showarrow": False, "yanchor": "bottom", "x": 1}
        figure.add_annotation(xref="paper", yref=loss, y=plateau.level, xanchor="right", **text)


def ablation(result: Any, measurement: str = "exact_match") -> go.Figure:
    """A metric of the intact model, of the ablated one and of each control, and the differences to the ablated one.

    Left: the mean over the examples; for a control the mean over its draws, a dot for each draw, and the interval of
    the middle 95 % of them. Right: ablated - each of the others, with 95 % intervals, from `result.table`.

    Args:
        result: the `Ablation` that `ablate_feature` returned.
        measurement: name of a metric that was measured.

    Raises:
        ValueError: if the metric was not measured.
    """
    if measurement not in result.values.measurement.values:
        raise ValueError(f"{measurement} was not measured; choose from {result.values.measurement.values.tolist()}")
    values, table = result.values.sel(measurement=measurement), result.table.loc[measurement]
    controls = [str(control) for control in values.control.values]
    names = {"intact": "intact", "ablated": "ablated", **{c: CONTROLS.get(c, c) for c in controls}}
    colors = {
        "intact": GRAY,
        "ablated": PURPLE,
        **{c: distinct(i, (BLUE, ORANGE, GREEN, SKY))["color"] for i, c in enumerate(controls)},
    }
    means = {name: float(values[name].mean()) for name in ("intact", "ablated")}
    figure = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.6, 0.4], horizontal_spacing=0.04)
    for name, label in names.items():
        drawn = {"y": [label], "name": label, "orientation": "h", "marker": {"color": colors[name]}, "width": 0.62}
        if name in controls:
            draws = values.controls.sel(control=name).mean("example").values
            mean, (low, high) = float(draws.mean()), np.percentile(draws, [2.5, 97.5])
            band = {"type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low]}
            figure.add_trace(go.Bar(x=[mean], error_x={**band, "color": GRAY, "width": 8}, opacity=0.75, **drawn), 1, 1)
            dots = {
                "mode": "markers",
                "marker": {"color": colors[name], "size": 5, "line": {"color": "white", "width": 0.5}},
            }
            figure.add_trace(go.Scatter(x=draws, y=[label] * len(draws), name=f"{label}, draws", **dots), 1, 1)
        else:
            figure.add_trace(go.Bar(x=[means[name]], opacity=0.75, **drawn), 1, 1)
        if name != "ablated":
            row = table.loc[name]
            reach = {"type": "data", "symmetric": False, "array": [row.high - row.difference]}
            reach |= {"arrayminus": [row.difference - row.low], "color": colors[name], "width": 8, "thickness": 3}
            dot = {"mode": "markers", "marker": {"color": colors[name], "size": 11}, "error_x": reach}
            figure.add_trace(go.Scatter(x=[row.difference], y=[label], name=f"ablated - {label}", **dot), 1, 2)
    figure.add_vline(means["ablated"], line={"color": PURPLE, "dash": "dash", "width": 1}, row=1, col=1)
    figure.add_vline(0, line={"color": GRAY, "width": 1.5}, row=1, col=2)
    unit = " (nats)" if measurement == "loss" else ""
    figure.update_xaxes(title=f"{measurement}{unit}", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="ablated - each", row=1, col=2)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=list(names.values()), ticksuffix=" ")
    title = {"text": f"{result.feature} removed by {result.method}"}
    return styled(figure, height=60 * len(names) + 130, title=title, showlegend=False)
