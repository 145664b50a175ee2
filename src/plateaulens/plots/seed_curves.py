"""Several runs in one figure: what is typical, and how much seeds differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from plateaulens.plots.curves import frame, panels_of, require_numbers, title_of
from plateaulens.plots.style import distinct, pale, stacked, stacked_style

FEW = 5  # fewer runs than this have no percentiles to speak of


def seeds(
    runs: Sequence[Any] | Mapping[str, Sequence[Any]], columns: Sequence[str] | None = None, x: str | None = None
) -> go.Figure:
    """Runs overlaid, a panel per column: a thin line per run, their median, and a band.

    The band reaches from the least to the greatest of fewer than 5 runs, and from the 10th to the 90th
    percentile of more; the legend says which. Nothing is interpolated: median and band use the steps at
    which every run of the group has a value.

    Args:
        runs: Runs or metrics frames; a dict of several such lists, by label, compares them.
        columns: what to draw; what `dynamics` draws unless given.
        x: a column to use as the time axis in place of the step, such as examples seen.

    Raises:
        ValueError: when there is no run, a column was recorded by none, or the runs of a group share no step.
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    groups = {label: [_indexed(frame(run), x) for run in group] for label, group in named.items()}
    if not groups or not all(groups.values()):
        raise ValueError(f"each group needs at least one run, got { ({k: len(v) for k, v in groups.items()}) }")
    frames = [metrics for group in groups.values() for metrics in group]
    recorded = list(dict.fromkeys(str(c) for metrics in frames for c in metrics))
    if columns is None:
        columns = [c for lines in panels_of(recorded).values() for c in lines]
    if not columns:
        raise ValueError(f"nothing to draw: recorded columns are {recorded}; pass columns=")
    for column in columns:
        for metrics in [m for m in frames if column in m] or frames[:1]:
            require_numbers(metrics, column)
    figure = stacked([title_of(c) for c in columns])
    for i, (label, group) in enumerate(groups.items()):
        _draw(figure, i, label, group, columns)
    return stacked_style(figure, len(columns), x or "step", hovermode="closest", showlegend=True)


def _indexed(metrics: pd.DataFrame, x: str | None) -> pd.DataFrame:
    if x is None:
        return metrics
    require_numbers(metrics, x)
    if metrics[x].duplicated().any():
        raise ValueError(f"x={x!r} has the same value at several steps; choose a column that grows, or leave it out")
    return metrics.set_index(x)


def _draw(figure: go.Figure, i: int, label: str, group: list[pd.DataFrame], columns: Sequence[str]) -> None:
    """One group in all panels, with one entry in the legend."""
    line, legend = distinct(i), True
    few = len(group) < FEW
    low, high = (0.0, 1.0) if few else (0.1, 0.9)
    band = "min to max" if few else "10th to 90th percentile"
    count = "1 run" if len(group) == 1 else f"{len(group)} runs: median, {band}"
    name = f"{label}, {count}" if label else count
    for row, column in enumerate(columns, 1):
        curves = [metrics[column].astype(float) for metrics in group if column in metrics]
        for k, curve in enumerate(curves):
            thin = {**line, "width": 1}
            style = {"mode": "lines", "line": thin, "opacity": 0.5, "legendgroup": label, "showlegend": False}
            run = go.Scatter(x=curve.index, y=curve, name=f"{label} run {k}".strip(), **style)
            figure.add_trace(run, row, 1)
        if len(curves) < len(group):
            continue  # a run without this column has no step in common with the others
        shared = pd.concat(curves, axis=1, join="inner").dropna()
        if shared.empty:
            continue
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": label, "showlegend": False}
        if len(group) > 1:
            bottom, top = shared.quantile(low, axis=1), shared.quantile(high, axis=1)
            figure.add_trace(go.Scatter(x=shared.index, y=bottom, name="low", **edge), row, 1)
            shade = go.Scatter(x=shared.index, y=top, name="high", fill="tonexty", fillcolor=pale(line["color"]))
            figure.add_trace(shade.update(edge), row, 1)
        middle = go.Scatter(x=shared.index, y=shared.median(axis=1), name=name, mode="lines", line={**line, "width": 3})
        figure.add_trace(middle.update(legendgroup=label, showlegend=legend), row, 1)
        legend = False
    if legend:
        whose = f"group {label!r} has" if label else "there is"
        raise ValueError(f"{whose} no step at which all runs recorded one of {list(columns)}; measure at equal steps")
