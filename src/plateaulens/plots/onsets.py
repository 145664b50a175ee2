"""The order in which metrics change before the drop."""

import numpy as np
import plotly.graph_objects as go

from plateaulens.plots.curves import PANELS
from plateaulens.plots.inputs import OrderedOnsets
from plateaulens.plots.style import GRAY, distinct, styled

COLORS = {column: color for columns in PANELS.values() for column, color in columns.items()}


def onset(order: OrderedOnsets) -> go.Figure:
    """Median lead of each metric before the drop with its interval over runs, and each run as a pale dot.

    Time runs to the right and ends at the drop. A pale triangle is a run in which the metric moved from the
    first step of the window on: its onset is there or earlier. Metrics without any onset keep an empty row.

    Args:
        order: Result of `onset_order`.
    """
    figure = go.Figure()
    for i, (name, row) in enumerate(order.lead.iterrows()):
        color = {"color": COLORS.get(str(name), distinct(i)["color"])}
        with_onset = order.leads[name].notna()
        leads, at_start = order.leads[name][with_onset], order.at_start[name][with_onset]
        marker = {**color, "size": 7, "symbol": np.where(at_start, "triangle-left", "circle").tolist()}
        points = {"x": leads, "y": [name] * len(leads), "text": [f"run {k}" for k in leads.index]}
        figure.add_scatter(**points, mode="markers", marker=marker, opacity=0.4, name=f"{name}, runs")
        ends = {"type": "data", "symmetric": False, "array": [row.high - row.lead], "arrayminus": [row.lead - row.low]}
        figure.add_scatter(
            x=[row.lead] if row.runs else [None],
            y=[name],
            mode="markers",
            marker={**color, "size": 12},
            error_x={**ends, **color, "thickness": 3, "width": 8} if row.runs else None,
            name=f"{name}, median",
        )
    figure.add_vline(0, line={"color": GRAY, "dash": "dot"}, annotation_text="drop", annotation_position="top left")
    figure.update_xaxes(
        title=f"steps before the drop (medians, {order.confidence:.0%} intervals)", autorange="reversed"
    )
    figure.update_yaxes(autorange="reversed")
    title = f"which metric moves first, {len(order.leads)} runs, rule {order.rule!r}"
    return styled(figure, height=70 * len(order.lead) + 130, title=title, showlegend=False)
