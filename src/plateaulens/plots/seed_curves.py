"""Several runs in one figure: their median and their spread over seeds."""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from plateaulens.plots.curves import panels_of, title_of
from plateaulens.plots.inputs import Metrics, metrics_frame, require_numbers
from plateaulens.plots.style import distinct, pale, stacked, stacked_style

MIN_RUNS_FOR_PERCENTILES = 5  # the band of fewer runs is from their minimum to their maximum


def seeds(
    runs: Sequence[Metrics] | Mapping[str, Sequence[Metrics]],
    columns: Sequence[str] | None = None,
    x: str | None = None,
) -> go.Figure:
    """Curves of several runs, a panel for each metric: a thin line for each run, their median, and a band.

    The band is from the minimum to the maximum of fewer than 5 runs, and from the 10th to the 90th percentile
    of more; the legend names it. Nothing is interpolated: median and band are of the steps at which every run
    of the group has a value.

    Args:
        runs: Runs or DataFrames of metrics; a dict of several such lists by label compares them.
        columns: Names of the metrics to draw; by default those that `dynamics` draws.
        x: Name of a column to use as the time axis instead of the step, such as the number of examples.

    Raises:
        ValueError: when there is no run, a metric was not recorded, or the runs of a group have no common step.
    """
    runs_by_label = runs if isinstance(runs, Mapping) else {"": runs}
    groups = {label: [_indexed(metrics_frame(run), x) for run in group] for label, group in runs_by_label.items()}
    if not groups or not all(groups.values()):
        sizes = {label: len(group) for label, group in groups.items()}
        raise ValueError(f"each group needs at least one run, got {sizes}")
    columns = _columns([metrics for group in groups.values() for metrics in group], columns)
    figure = stacked([title_of(c) for c in columns])
    for i, (label, group) in enumerate(groups.items()):
        _draw(figure, i, label, group, columns)
    return stacked_style(figure, len(columns), x or "step", hovermode="closest", showlegend=True)


def _columns(frames: list[pd.DataFrame], columns: Sequence[str] | None) -> Sequence[str]:
    """The metrics to draw: `columns`, each recorded by a run at least, or those with a panel in `dynamics`."""
    recorded = list(dict.fromkeys(str(column) for metrics in frames for column in metrics))
    if columns is None:
        columns = [column for lines in panels_of(recorded).values() for column in lines]
    if not columns:
        raise ValueError(f"nothing to draw: recorded columns are {recorded}; pass columns=")
    for column in columns:
        for metrics in [frame for frame in frames if column in frame] or frames[:1]:
            require_numbers(metrics, column)
    return columns


def _indexed(metrics: pd.DataFrame, x: str | None) -> pd.DataFrame:
    """The metrics with column `x` as their index, or as they are."""
    if x is None:
        return metrics
    require_numbers(metrics, x)
    if metrics[x].duplicated().any():
        raise ValueError(f"x={x!r} has the same value at several steps; choose a column that grows, or leave it out")
    return metrics.set_index(x)


def _draw(figure: go.Figure, i: int, label: str, group: list[pd.DataFrame], columns: Sequence[str]) -> None:
    """Draw the i-th group in all panels, with one entry in the legend."""
    line, in_legend = distinct(i), False
    few = len(group) < MIN_RUNS_FOR_PERCENTILES
    low, high = (0.0, 1.0) if few else (0.1, 0.9)
    band = "min to max" if few else "10th to 90th percentile"
    count = "1 run" if len(group) == 1 else f"{len(group)} runs: median, {band}"
    name = f"{label}, {count}" if label else count
    for row, column in enumerate(columns, 1):
        curves = [metrics[column].astype(float) for metrics in group if column in metrics]
        thin = {
            "mode": "lines",
            "line": {**line, "width": 1},
            "opacity": 0.5,
            "legendgroup": label,
            "showlegend": False,
        }
        for k, curve in enumerate(curves):
            figure.add_trace(go.Scatter(x=curve.index, y=curve, name=f"{label} run {k}".strip(), **thin), row, 1)
        if len(curves) < len(group):
            continue  # a run without this metric has no step in common with the others
        common = pd.concat(curves, axis=1, join="inner").dropna()
        if common.empty:
            continue
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": label, "showlegend": False}
        if len(group) > 1:
            bottom, top = common.quantile(low, axis=1), common.quantile(high, axis=1)
            figure.add_trace(go.Scatter(x=common.index, y=bottom, name="low", **edge), row, 1)
            shade = go.Scatter(x=common.index, y=top, name="high", fill="tonexty", fillcolor=pale(line["color"]))
            figure.add_trace(shade.update(edge), row, 1)
        middle = go.Scatter(x=common.index, y=common.median(axis=1), name=name, mode="lines", line={**line, "width": 3})
        figure.add_trace(middle.update(legendgroup=label, showlegend=not in_legend), row, 1)
        in_legend = True
    if not in_legend:
        whose = f"group {label!r} has" if label else "there is"
        raise ValueError(f"{whose} no step at which all runs recorded one of {list(columns)}; measure at equal steps")
