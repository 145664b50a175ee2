"""Curves over training."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from plateaulens.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, styled

# Panel title -> columns with their colours; a panel without any recorded column is left out.
PANELS: dict[str, dict[str, str]] = {
    "loss (nats)": {"loss": BLUE, "answer_loss": ORANGE},
    "accuracy": {"accuracy": GREEN},
    "repetition and collapse": {"repetition": ORANGE, "collapse": RED},
    "attention progress": {"attention_progress": PURPLE},
}


def frame(run: Any) -> pd.DataFrame:
    """The metrics of a Run, or the frame itself."""
    return run if isinstance(run, pd.DataFrame) else run.metrics


def dynamics(run: Any, plateau: Any = None) -> go.Figure:
    """Loss, accuracy, repetition, collapse and attention progress on one time axis.

    Args:
        run: a Run or a metrics frame.
        plateau: from `find_plateau`; shades the plateau and draws its level, the floor and the drop.

    Raises:
        ValueError: when nothing was recorded that belongs into a panel.
    """
    metrics = frame(run)
    panels = {title: {c: k for c, k in cs.items() if c in metrics} for title, cs in PANELS.items()}
    panels = {title: columns for title, columns in panels.items() if columns}
    if not panels:
        raise ValueError(f"nothing to draw: recorded columns are {list(metrics)}")
    figure = make_subplots(len(panels), 1, shared_xaxes=True, subplot_titles=list(panels), vertical_spacing=0.07)
    for row, columns in enumerate(panels.values(), 1):
        for name, colour in columns.items():
            line = go.Scatter(x=metrics.index, y=metrics[name], name=name, mode="lines", line={"color": colour})
            figure.add_trace(line, row, 1)
    if plateau is not None:
        _mark(figure, plateau, int(metrics.index.max()))
    figure.update_xaxes(title="step", row=len(panels), col=1)
    return styled(figure, height=170 * len(panels) + 90, legend={"orientation": "h", "y": -0.1}, hovermode="x unified")


def _mark(figure: go.Figure, plateau: Any, last: int) -> None:
    if plateau.start is not None:
        end = last if plateau.end is None else plateau.end
        figure.add_vrect(plateau.start, end, fillcolor=GREY, opacity=0.15, line_width=0, row="all", col=1)
    if plateau.drop is not None:
        figure.add_vline(plateau.drop, line={"color": GREY, "dash": "dot"}, row="all", col=1)
    for y, label in ((plateau.level, "analytic plateau"), (plateau.floor, "analytic floor")):
        line = {"color": GREY, "dash": "dash", "width": 1}
        text = f"{label} {y:.4f}"
        figure.add_hline(y, line=line, annotation_text=text, annotation_position="top right", row=1, col=1)


def position_accuracy(run: Any) -> go.Figure:
    """Accuracy of every answer position over training.

    Raises:
        ValueError: when `position_accuracy` was not recorded.
    """
    metrics = frame(run)
    if "position_accuracy" not in metrics:
        raise ValueError("position_accuracy was not recorded; add pl.position_accuracy to the watch list")
    rows = np.stack([np.asarray(row, dtype=float) for row in metrics["position_accuracy"]])
    heat = go.Heatmap(
        z=rows.T, x=metrics.index, y=np.arange(1, rows.shape[1] + 1), zmin=0, zmax=1, colorscale="Viridis"
    )
    figure = go.Figure(heat)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="answer position", autorange="reversed")
    return styled(figure, height=360, title="accuracy by answer position")
