"""Curves of recorded metrics over training."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from plateaulens.plots.inputs import HasParts, Metrics, PlateauSteps, metrics_frame, require_numbers
from plateaulens.plots.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    SKY,
    distinct,
    stacked,
    stacked_style,
    styled,
)

# Title of a panel -> metrics with their colors; a panel without any recorded metric is left out.
PANELS: dict[str, dict[str, str]] = {
    "loss (nats)": {"loss": BLUE, "answer_loss": ORANGE},
    "accuracy": {"accuracy": GREEN, "count_check": SKY},
    "repetition and collapse": {"repetition": ORANGE, "collapse": RED, "alpha_1": BLUE},
    "attention progress": {"attention_progress": PURPLE},
}
IN_NATS = ("loss", "answer_loss", "train_loss", "entropy", "sequence_log_prob")


def title_of(column: str) -> str:
    """The name of a metric with its unit."""
    return f"{column} (nats)" if column in IN_NATS else column


def panels_of(columns: Iterable[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Lines of each panel by its title: those `columns` that are in `PANELS`, and `attention_progress@LAYER`."""
    columns = list(columns)
    panels = {title: {c: {"color": k} for c, k in cs.items() if c in columns} for title, cs in PANELS.items()}
    others = [color for color in PALETTE if color != PURPLE]
    layers: list[str] = []
    for name in (c for c in columns if c.startswith("attention_progress@")):
        layer, _, route = name.partition("@")[2].partition(":")
        if layer not in layers:
            layers.append(layer)
        line = distinct(layers.index(layer), others)
        panels["attention progress"][name] = {**line, "dash": "dash"} if route else line
    return {title: lines for title, lines in panels.items() if lines}


def dynamics(run: Metrics, plateau: PlateauSteps | None = None, extra: Sequence[str] = ()) -> go.Figure:
    """Loss, accuracy, repetition, collapse and attention progress on one time axis.

    `count_check`, `alpha_1` and `attention_progress@LAYER` are drawn when they were recorded, the second
    solution (`attention_progress@LAYER:alternative`) dashed.

    Args:
        run: A run or a DataFrame of metrics by step.
        plateau: Result of `find_plateau`; shades the plateau and draws its level, the floor and the drop.
        extra: Names of more metrics, each in a panel of its own, such as `entropy`; steps without a value are
            left out.

    Raises:
        ValueError: when no metric of any panel was recorded, or an extra metric was not.
    """
    metrics = metrics_frame(run)
    panels = list(panels_of(map(str, metrics)).items())
    for name in extra:
        require_numbers(metrics, name)
        panels.append((title_of(name), {name: {"color": SKY}}))
    if not panels:
        raise ValueError(f"nothing to draw: recorded columns are {list(metrics)}")
    figure = stacked([title for title, _ in panels])
    for row, (_, lines) in enumerate(panels, 1):
        for name, line in lines.items():
            series = (
                metrics[name].dropna() if name in extra else metrics[name]
            )  # an extra metric may be measured less often
            figure.add_trace(go.Scatter(x=series.index, y=series, name=name, mode="lines", line=line), row, 1)
    if plateau is not None:
        _mark(figure, plateau, int(metrics.index.max()))
    return stacked_style(figure, len(panels), hovermode="x unified")


def _mark(figure: go.Figure, plateau: PlateauSteps, last: int) -> None:
    """Shade the plateau, and draw the drop and the two loss levels; `last` is the last recorded step."""
    if plateau.start is not None:
        end = last if plateau.end is None else plateau.end
        figure.add_vrect(plateau.start, end, fillcolor=GRAY, opacity=0.15, line_width=0, row="all", col=1)
    if plateau.drop is not None:
        figure.add_vline(plateau.drop, line={"color": GRAY, "dash": "dot"}, row="all", col=1)
    for y, label in ((plateau.level, "analytic plateau"), (plateau.floor, "analytic floor")):
        line = {"color": GRAY, "dash": "dash", "width": 1}
        text = f"{label} {y:.4f}"
        figure.add_hline(y, line=line, annotation_text=text, annotation_position="top right", row=1, col=1)


def position_accuracy(run: Metrics) -> go.Figure:
    """Accuracy of every answer position over training, as a heat map.

    Args:
        run: A run or a DataFrame with the column `position_accuracy`.

    Raises:
        ValueError: when `position_accuracy` was not recorded.
    """
    steps, rows = _rows(metrics_frame(run), "position_accuracy")
    heat = go.Heatmap(z=rows.T, x=steps, y=np.arange(1, rows.shape[1] + 1), zmin=0, zmax=1, colorscale="Viridis")
    figure = go.Figure(heat)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="answer position", autorange="reversed")
    return styled(figure, height=360, title="accuracy by answer position")


def part_accuracy(run: Metrics, task: HasParts | None = None) -> go.Figure:
    """Accuracy of each of the task's `parts` over training, a line for each part.

    Args:
        run: A run, or a DataFrame with the column `part_accuracy` together with `task`.
        task: The task, which names the parts; by default that of the run.

    Raises:
        ValueError: when `part_accuracy` was not recorded, no task is known, or its parts are not the recorded ones.
    """
    steps, rows = _rows(metrics_frame(run), "part_accuracy")
    task = getattr(run, "task", None) if task is None else task
    if task is None:
        raise ValueError("the names of the parts are not known, since this run has no task; pass task=")
    names = list(task.parts)
    if len(names) != rows.shape[1]:
        raise ValueError(
            f"{rows.shape[1]} parts were recorded, but {task!r} has {len(names)} ({names}); "
            "pass task= the task that the run was measured on"
        )
    figure = go.Figure()
    for i, name in enumerate(names):
        figure.add_scatter(x=steps, y=rows[:, i], name=name, mode="lines", line=distinct(i))
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="accuracy", range=[-0.02, 1.02])
    title = "accuracy by part of the answer"
    legend = {"orientation": "h", "y": -0.4}
    return styled(figure, height=360, title=title, hovermode="x unified", legend=legend, showlegend=True)


def _rows(metrics: pd.DataFrame, column: str) -> tuple[pd.Index, Float[np.ndarray, "step part"]]:
    """The steps at which a metric with a list of values was recorded, and the lists."""
    lists = metrics[column].dropna() if column in metrics else pd.Series(dtype=object)
    if lists.empty:
        raise ValueError(f"{column} was not recorded; add it to the metrics list")
    return lists.index, np.stack([np.asarray(row, dtype=float) for row in lists])
