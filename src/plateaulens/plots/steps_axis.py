"""A logarithmic axis of training steps, with step 0 on a short axis of its own to the left of it.

The two axes are separated by a gap with break marks; no line crosses the gap.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from plateaulens.plots.style import GRAY, pale

ZERO_WIDTH, ZERO_GAP = 0.03, 0.015  # width of the axis of step 0 and of the gap after it, as shares of the figure
MAX_MARKERS = 40  # curves of more measured steps have no markers
DOUBLING_STEPS = [*(2**i for i in range(10)), *(1000 * 2**i for i in range(20))]  # as the checkpoints of Pythia


def short(step: int) -> str:
    """A step as a label, without rounding: 512, 1k, 1.5k, 143k."""
    return f"{step / 1000:g}k" if step >= 1000 and step % 100 == 0 else str(step)


def ticks(first: int, last: int, room: int) -> list[int]:
    """Powers of two, of four or of ten from `first` to `last`: the densest of which there are at most `room`."""
    for powers in (DOUBLING_STEPS, DOUBLING_STEPS[::2], [10**i for i in range(10)]):
        inside = [step for step in powers if first <= step <= last]
        if len(inside) <= room:
            break
    return inside if len(inside) > 1 else sorted({first, last})


def step_axes(
    figure: go.Figure, steps: Iterable[int], domain: tuple[float, float] = (0.0, 1.0), *, panel: int = 1, room: int = 18
) -> tuple[str, str]:
    """Lay out the x axes of a panel for `steps`.

    Args:
        figure: Figure that gets the x axes and the break marks.
        steps: All steps of the panel; the axis of step 0 is drawn only if 0 is one of them.
        domain: Start and end of the panel, as shares of the figure's width.
        panel: Number of the panel, 1, 2, ... from the left; panels zoom together.
        room: Largest number of labels on the log axis.

    Returns:
        The names of the log axis and of the axis of step 0.
    """
    steps = [int(step) for step in steps]
    later = [step for step in steps if step > 0] or [1, 10]  # step 0 alone: an empty log axis
    first, last = min(later), max(later)
    margin = 0.03 * np.log10(last / first) or 0.3
    marks = ticks(first, last, room)
    start, end = domain
    cut, left = (start + ZERO_WIDTH, start + ZERO_WIDTH + ZERO_GAP) if 0 in steps else (start, start)
    log, zero = f"x{2 * panel - 1}", f"x{2 * panel}"
    look = {"showline": True, "linecolor": GRAY, "ticks": "outside", "tickcolor": GRAY}
    scale = {"type": "log", "range": [np.log10(first) - margin, np.log10(last) + margin], "domain": [left, end]}
    labels = {"tickvals": marks, "ticktext": [short(step) for step in marks], "title": "step", "hoverformat": ",d"}
    together = {"matches": "x"} if panel > 1 else {}
    figure.update_layout({f"xaxis{log[1:]}": {**scale, **labels, **look, **together}})
    if 0 in steps:
        place = {"domain": [start, cut], "range": [-1, 1], "tickvals": [0], "fixedrange": True}
        figure.update_layout({f"xaxis{zero[1:]}": {**place, **look}})
        for x in (cut, left):
            slash = {"type": "line", "x0": -3, "x1": 3, "y0": -6, "y1": 6, "line": {"color": GRAY, "width": 1.5}}
            pixels = {"xref": "paper", "yref": "paper", "xsizemode": "pixel", "ysizemode": "pixel"}
            figure.add_shape(xanchor=x, yanchor=0, **pixels, **slash)
    return log if panel > 1 else "x", zero


def add_curve(
    figure: go.Figure, curve: pd.Series, band: pd.DataFrame, line: dict[str, Any], axes: tuple[str, str], y: str = "y"
) -> None:
    """Draw a line over the steps after 0 and a point at step 0, each with its interval where `band` has one.

    Args:
        figure: Figure with the axes of `step_axes`.
        curve: Values by step; its name is that of the curve.
        band: Columns `low` and `high` by step.
        line: Color and dash of the line, and `symbol` of its markers.
        axes: Result of `step_axes`.
        y: Name of the y axis.
    """
    line = dict(line)
    marker = {"color": line["color"], "symbol": line.pop("symbol", "circle"), "size": 6}
    log, zero = axes
    name = str(curve.name)
    common = {"yaxis": y, "legendgroup": name}
    after = band[band.index > 0]
    edge = {"x": after.index, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    if len(after):
        figure.add_scatter(y=after.low, name=f"{name}, low", xaxis=log, **edge, **common)
        shade = {"fill": "tonexty", "fillcolor": pale(line["color"])}
        figure.add_scatter(y=after.high, name=f"{name}, high", xaxis=log, **shade, **edge, **common)
    later = curve[curve.index > 0]
    mode = "lines+markers" if len(later) <= MAX_MARKERS else "lines"
    drawn = {"name": name, "marker": marker, "hovertemplate": "%{y:.3f}", **common}
    figure.add_scatter(x=later.index, y=later, mode=mode, line={**line, "width": 2}, xaxis=log, **drawn)
    if 0 in curve.index:
        error = None
        if 0 in band.index:
            reach = {"array": [band.high[0] - curve[0]], "arrayminus": [curve[0] - band.low[0]]}
            error = {"type": "data", "symmetric": False, **reach, "color": line["color"], "thickness": 2, "width": 4}
        figure.add_scatter(x=[0], y=[curve[0]], mode="markers", error_y=error, xaxis=zero, showlegend=False, **drawn)
