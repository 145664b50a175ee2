"""Which metric moves first."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from plateaulens.plots.curves import PANELS
from plateaulens.plots.style import GRAY, distinct, styled

COLORS = {column: color for columns in PANELS.values() for column, color in columns.items()}


def onset(order: Any) -> go.Figure:
    """Median lead of each metric before the drop with its interval over runs, and each run as a pale dot.

    Time runs to the right and ends at the drop. A pale triangle is a run in which the metric moved from the
    first step of the window on: its onset lies there or earlier. Metrics without any onset keep an empty row.

    Args:
        order: from `onset_order`.
    """
    figure = go.Figure()
    for i, (name, row) in enumerate(order.lead.iterrows()):
        line = {"color": COLORS.get(str(name), distinct(i)["color"])}
        known = order.leads[name].notna()
        leads, early = order.leads[name][known], order.at_start[name][known]
        marks = {"color": line["color"], "size": 7, "symbol": np.where(early, "triangle-left", "circle").tolist()}
        text = [f"run {k}" for k in leads.index]
        figure.add_scatter(
            x=leads, y=[name] * len(leads), mode="markers", marker=marks, opacity=0.4, name=f"{name}, runs", text=text
        )
        reach = {"type": "data", "symmetric": False, "array": [row.high - row.lead], "arrayminus": [row.lead - row.low]}
        figure.add_scatter(
            x=[row.lead] if row.runs else [None],
            y=[name],
            mode="markers",
            marker={**line, "size": 12},
            error_x={**reach, **line, "thickness": 3, "width": 8} if row.runs else None,
            name=f"{name}, median",
        )
    figure.add_vline(0, line={"color": GRAY, "dash": "dot"}, annotation_text="drop", annotation_position="top left")
    figure.update_xaxes(
        title=f"steps before the drop (medians, {order.confidence:.0%} intervals)", autorange="reversed"
    )
    figure.update_yaxes(autorange="reversed")
    title = f"who moves first, {len(order.leads)} runs, rule {order.rule!r}"
    return styled(figure, height=70 * len(order.lead) + 130, title=title, showlegend=False)
