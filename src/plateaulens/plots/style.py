"""One look for all figures: transparent, readable on light and on dark, safe for colour-blind eyes."""

from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#888888"
GRID = "rgba(128,128,128,0.25)"


def styled(figure: go.Figure, **layout: Any) -> go.Figure:
    """Apply the look; `layout` adds to it."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#777777"},
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        hoverlabel={"font": {"color": "white"}},
        **layout,
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    return figure
