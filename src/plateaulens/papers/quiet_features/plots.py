"""Figure of loss against compute (arXiv 2505.03997)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from plateaulens.papers.quiet_features.scaling_law import TwoPhases
from plateaulens.plots.style import GRAY, distinct, pale, styled

MAX_COLUMNS = 3  # panels side by side


def scaling_law(
    frontiers: Mapping[str, Mapping[str, pd.DataFrame]],
    chance: Mapping[str, float] | None = None,
    phases: Mapping[str, Mapping[str, TwoPhases]] | None = None,
    *,
    value: str = "loss",
) -> go.Figure:
    """The best run of each budget: a panel for each task, a line for each size, both axes log (arXiv 2505.03997).

    A band in the color of the line spans the last flat budget to the transition of its `TwoPhases`, if it has one.

    Args:
        frontiers: the table of `frontier` by panel and size.
        chance: by panel, a level that is drawn dashed, such as `task.loss_plateau()`.
        phases: the result of `two_phases` by panel and size.
        value: the column to draw; only the axis of `loss` is log.

    Raises:
        ValueError: if there is no frontier, or one lacks the column.
    """
    _check_frontiers(frontiers, value)
    columns = min(MAX_COLUMNS, len(frontiers))
    rows = -(-len(frontiers) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(frontiers), horizontal_spacing=0.09, vertical_spacing=0.3 / rows
    )
    all_sizes = list(dict.fromkeys(size for sizes in frontiers.values() for size in sizes))
    chance, phases = chance or {}, phases or {}
    for i, (panel, sizes) in enumerate(frontiers.items()):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        for size, front in sizes.items():
            line = distinct(all_sizes.index(size))
            _add_frontier(figure, front[value], size, line, phases.get(panel, {}).get(size), place)
        if panel in chance:
            _add_chance(figure, chance[panel], place, log=value == "loss")
        if i + columns >= len(frontiers):  # the lowest of its column
            figure.update_xaxes(title="training compute (operations)", **place)
    figure.update_xaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title=f"{value} (nats)" if value == "loss" else value, col=1)
    if value == "loss":
        figure.update_yaxes(type="log", exponentformat="power")
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.32 / rows}
    return styled(figure, height=250 * rows + 110, legend=legend, showlegend=True)


def _check_frontiers(frontiers: Mapping[str, Mapping[str, pd.DataFrame]], value: str) -> None:
    if not frontiers or not all(frontiers.values()):
        sizes_by_panel = {panel: list(sizes) for panel, sizes in frontiers.items()}
        raise ValueError(f"each panel needs at least one frontier, got {sizes_by_panel}")
    for panel, sizes in frontiers.items():
        for size, front in sizes.items():
            if value not in front:
                raise ValueError(f"the frontier of {panel}, {size}, has no column {value!r}; it has {list(front)}")


def _add_frontier(
    figure: go.Figure,
    values: pd.Series,
    size: str,
    line: dict[str, Any],
    phases: TwoPhases | None,
    place: dict[str, int],
) -> None:
    """The line of one size, and the band of its transition."""
    new = not any(trace.name == size for trace in figure.data)
    style = {"mode": "lines+markers", "line": line, "marker": {"size": 7}, "legendgroup": size, "showlegend": new}
    figure.add_trace(go.Scatter(x=values.index, y=values, name=size, **style), **place)
    if phases is not None and phases.transition is not None:
        band = {"fillcolor": pale(line["color"]), "line_width": 0, "layer": "below"}
        figure.add_vrect(phases.last_flat, phases.transition, **band, **place)


def _add_chance(figure: go.Figure, level: float, place: dict[str, int], *, log: bool) -> None:
    """The dashed level of chance, with its label; on a log axis, plotly places labels by the logarithm."""
    figure.add_hline(level, line={"color": GRAY, "dash": "dash", "width": 1.5}, **place)
    text = {"text": "chance", "showarrow": False, "xanchor": "right", "yanchor": "bottom"}
    height = float(np.log10(level)) if log else level
    figure.add_annotation(x=1, xref="x domain", y=height, **text, **place)
