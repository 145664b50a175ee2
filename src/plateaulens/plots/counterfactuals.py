"""Runs with and without an intervention, paired by seed."""

from collections.abc import Sequence

import plotly.graph_objects as go

from plateaulens.plots.curves import title_of
from plateaulens.plots.inputs import HasMetrics
from plateaulens.plots.seed_curves import seeds
from plateaulens.plots.style import GRAY, distinct, stacked, stacked_style


def counterfactual(
    control: Sequence[HasMetrics],
    changed: Sequence[HasMetrics],
    value: str = "loss",
    *,
    labels: tuple[str, str] = ("control", "changed"),
) -> go.Figure:
    """Curves of both groups as in `seeds`, and below them the drops of each pair, joined by a line.

    A run without a drop is an open triangle at its last step, joined by a dotted line.

    Args:
        control: Runs without the change.
        changed: As many runs with it, of the same seeds.
        value: Name of the recorded metric to draw.
        labels: Names of the two groups.

    Raises:
        ValueError: for no runs, runs that cannot be paired, equal labels, or a metric that was not recorded.
    """
    from plateaulens.analysis.paired_differences import paired_by_seed  # in here: figures of metrics need no torch
    from plateaulens.analysis.plateau import find_plateau

    if labels[0] == labels[1]:
        raise ValueError(f"the two groups need different labels, got {labels[0]!r} twice")
    pairs = paired_by_seed(control, changed)
    if not pairs:
        raise ValueError("a counterfactual needs at least one pair of runs")
    curves = seeds({labels[0]: control, labels[1]: changed}, [value])
    figure = stacked([title_of(value), "drop of each pair"], row_heights=[0.7, 0.3])
    figure.add_traces(curves.data)
    for i, pair in enumerate(pairs):
        drops = [find_plateau(run).drop for run in pair]
        x = [int(run.metrics.index.max()) if drop is None else drop for run, drop in zip(pair, drops, strict=True)]
        marker = {
            "color": [distinct(k)["color"] for k in range(2)],
            "symbol": ["triangle-right-open" if drop is None else "circle" for drop in drops],
            "size": 9,
        }
        text = [f"no drop by {at}" if drop is None else f"drop at {at}" for at, drop in zip(x, drops, strict=True)]
        line = {"color": GRAY, "width": 1, "dash": "dot" if None in drops else "solid"}
        style = {"mode": "lines+markers", "marker": marker, "line": line, "showlegend": False}
        figure.add_trace(go.Scatter(x=x, y=list(labels), name=f"pair {i}", text=text, **style), 2, 1)
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    return stacked_style(figure, 2, hovermode="closest", showlegend=True).update_layout(height=520)
