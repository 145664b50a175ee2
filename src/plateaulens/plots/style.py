"""Style of all figures: transparent, readable on light and dark pages and with color blindness."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

# The palette of Okabe and Ito.
BLUE, ORANGE, GREEN, RED, PURPLE, GRAY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#888888"
SKY = "#56b4e9"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
DASHES = ("solid", "dot", "dashdot", "longdash")
GRID = "rgba(128,128,128,0.25)"
LEGEND = {"orientation": "h", "y": -0.25}  # below the axes


def distinct(i: int, palette: Sequence[str] = PALETTE) -> dict[str, str]:
    """The i-th line style: all colors solid, then all colors dotted, and so on."""
    return {"color": palette[i % len(palette)], "dash": DASHES[i // len(palette) % len(DASHES)]}


def stacked(titles: Sequence[str], **axes: Any) -> go.Figure:
    """Empty panels, one above the other, with a common x axis."""
    spacing = 0.28 / len(titles)  # the same distance in pixels for any number of panels
    return make_subplots(len(titles), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=spacing, **axes)


def stacked_style(figure: go.Figure, panels: int, x: str = "step", **layout: Any) -> go.Figure:
    """Style `stacked` panels, with the title `x` of the axis and the legend below the last one."""
    figure.update_xaxes(title=x, row=panels, col=1)
    legend = {"orientation": "h", "y": -0.4 / panels}
    return styled(figure, height=170 * panels + 90, legend=legend, **layout)


def styled(figure: go.Figure, **layout: Any) -> go.Figure:
    """Apply the style to a figure; `layout` adds more of its layout."""
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


def pale(color: str) -> str:
    """A color of the palette, transparent, for the area of a band."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.25)"
