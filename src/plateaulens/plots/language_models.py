"""Figures of a language model over pre-training, from the metrics of its checkpoints.

The functions take an `EvaluatedCheckpoints`, a Run or a metrics frame. An `EvaluatedCheckpoints` has the values of
single prompts too: from them come the bands, 95 % intervals of the mean over prompts (Student's t, prompts taken as
independent).
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.special import stdtrit

from plateaulens.plots.curves import title_of
from plateaulens.plots.inputs import Metrics, metrics_frame, require_numbers
from plateaulens.plots.site_curves import FINAL
from plateaulens.plots.step_grids import GAP
from plateaulens.plots.steps_axis import add_curve, short, step_axes
from plateaulens.plots.style import BLUE, RED, styled

# Curves differ in color, dash and marker; each of these suffices to tell them apart.
LOOKS = ({"color": BLUE, "dash": "solid", "symbol": "circle"}, {"color": RED, "dash": "dash", "symbol": "diamond"})
# Shares, and cosines that are seldom negative: the axis covers 0 to 1, and more where values do.
UNIT_METRICS = ("accuracy", "tf_accuracy", "repetition", "collapse", "alpha_1", "count_check", "attention_progress")
EMBEDDED, TOP = "embeddings", "final norm"  # rows besides the layers
MAX_LEVEL_LABELS = 24  # with more steps than this, their labels are vertical


def early(evaluated: Metrics, left: str = "collapse", right: str = "repetition") -> go.Figure:
    """Two metrics against the step on a log axis, each with its own y axis (arXiv 2506.13688).

    Step 0 is drawn left of a break in the axis. The bands (at step 0 a bar) are 95 % t intervals of the mean over
    prompts; a Run and a frame have none. Steps without a value are left out.

    Args:
        evaluated: An `EvaluatedCheckpoints`, a Run or a metrics frame.
        left: Column on the left axis.
        right: Column on the right axis.

    Raises:
        ValueError: For a column that was not recorded, has no value, or has a list at each step.
    """
    metrics = metrics_frame(evaluated)
    curves = [_curve(metrics, left), _curve(metrics, right)]
    bands = [intervals(evaluated, curve) for curve in curves]
    figure = go.Figure()
    steps = curves[0].index.union(curves[1].index)
    axes = step_axes(figure, steps)
    for y, curve, band, look in zip(("y", "y2"), curves, bands, LOOKS):
        add_curve(figure, curve, band, look, axes, y)
        figure.update_layout({f"yaxis{y[1:]}": {"range": _range(curve, band), **_axis_in_color(curve, look)}})
    figure.update_layout(yaxis={"anchor": axes[1] if 0 in steps else axes[0]})
    figure.update_layout(
        yaxis2={"overlaying": "y", "side": "right", "anchor": "x", "showgrid": False, "tickmode": "auto"}
    )
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.24}
    title = _titled(evaluated, f"{left} and {right}")
    if any(map(len, bands)):
        title["subtitle"] = {"text": "mean over prompts with its 95 % interval"}
    styled(figure, height=440, title=title, hovermode="x unified", legend=legend, showlegend=True)
    return figure.update_layout(margin={"t": 80, "r": 60})  # for the subtitle and the right axis


def layer_steps(evaluated: Metrics, metric: str = "collapse", site: str = "hook_resid_post") -> go.Figure:
    """A heat map of a metric of hidden states, layers upwards and steps to the right, all steps equally wide.

    The embeddings (`hook_resid_pre` of layer 0, or else `hook_embed`) are the lowest row if they were recorded. The
    state after the final norm is set apart on top. Cells without a value are empty.

    Args:
        evaluated: An `EvaluatedCheckpoints`, a Run or a metrics frame with columns `METRIC@blocks.LAYER.SITE`.
        metric: Name of the metric, such as "collapse", "norm" or "effective_rank".
        site: Hook within a layer.

    Raises:
        ValueError: If `metric` was recorded in no layer at `site`, has no value, or has a list at each step.
    """
    metrics = metrics_frame(evaluated)
    rows = _columns_by_layer(list(map(str, metrics)), metric, site)
    for column in rows.values():
        require_numbers(metrics, column)
    steps = [int(step) for step in metrics.index]
    z = metrics[list(rows.values())].to_numpy(dtype=float).T
    if np.isnan(z).all():
        raise ValueError(f"{metric} has no value at {site} at any step")
    low, high = _extent(metric, z)
    names = list(rows)
    bottoms = [float(i) for i in range(len(rows))]
    if TOP in rows:  # an empty row makes the gap
        z, names[-1:], bottoms[-1:] = np.insert(z, -1, np.nan, axis=0), ["", TOP], [bottoms[-1], bottoms[-1] + GAP]
    limits = {"zmin": low, "zmax": high, "colorscale": "Viridis", "colorbar": {"thickness": 10, "nticks": 6}}
    heat = go.Heatmap(
        z=z,
        x=[float(i) for i in range(len(steps) + 1)],
        y=[*bottoms, bottoms[-1] + 1],
        text=_hover_texts(names, steps),
        hovertemplate=f"%{{text}}<br>{metric} %{{z:.3g}}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **limits,
    )
    figure = go.Figure(heat)
    columns = {"tickvals": [i + 0.5 for i in range(len(steps))], "ticktext": [short(step) for step in steps]}
    figure.update_xaxes(title="step", showgrid=False, tickangle=-90 if len(steps) > MAX_LEVEL_LABELS else 0, **columns)
    labels = {bottom + 0.5: name for bottom, name in zip(bottoms, names, strict=True) if name}
    figure.update_yaxes(title="layer", showgrid=False, tickvals=[*labels], ticktext=[*labels.values()])
    title = _titled(evaluated, f"{metric} at {site.removeprefix('hook_')}")
    styled(figure, height=150 + max(130, min(640, 32 * len(rows))), title=title)
    width = 180 + 14 * len(steps)  # every step has a label
    return figure.update_layout(width=width) if width > 700 else figure


def _hover_texts(names: Sequence[str], steps: Sequence[int]) -> list[list[str]]:
    """The hover text of each row and step."""
    titles = {EMBEDDED: EMBEDDED, TOP: f"after the {TOP}"}
    return [[f"{titles.get(name, f'layer {name}')}, step {step}" for step in steps] for name in names]


def side_by_side(run: Metrics, evaluated: Metrics, metrics: Sequence[str] = ("collapse", "repetition")) -> go.Figure:
    """A run and a language model over training, a row for each metric, with one scale for both.

    Args:
        run: The run on the left: a Run or a metrics frame.
        evaluated: The language model on the right: an `EvaluatedCheckpoints` (drawn with bands as in `early`), a Run or
            a metrics frame.
        metrics: Columns that both have.

    Raises:
        ValueError: For no metric, or one that one of the two does not have.
    """
    sources = {"run": run, "evaluation": evaluated}
    curves = _curves_of_both(sources, metrics)
    steps = sorted({int(step) for row in curves.values() for curve in row for step in curve.index})
    figure, n = go.Figure(), len(metrics)
    ranges: list[list[float]] = [[] for _ in metrics]
    for i, (side, source) in enumerate(sources.items()):
        start, end = (0.54, 1.0) if i else (0.0, 0.46)
        axes = step_axes(figure, steps, (start, end), panel=i + 1, room=10)
        for row, curve in enumerate(curves[side]):
            band = intervals(source, curve)
            look = {**LOOKS[row % 2], "dash": "solid"}  # in panels of their own, no dash is needed
            add_curve(figure, curve, band, look, axes, _axis(row))
            ranges[row] += _range(curve, band)
        title = {
            "text": _name(source) or side,
            "x": (start + end) / 2,
            "y": 1,
            "xanchor": "center",
            "yanchor": "bottom",
        }
        figure.add_annotation(xref="paper", yref="paper", showarrow=False, font={"size": 15}, **title)
    height, space = 0.85 / (n - 0.15), 0.15 / (n - 0.15)  # of a row
    for row, curve in enumerate(curves["run"]):
        top = 1 - row * (height + space)
        place = {"domain": [max(0.0, top - height), top], "anchor": "x2" if 0 in steps else "x", "nticks": 6}
        scale = {"range": [min(ranges[row]), max(ranges[row])], **_axis_in_color(curve, LOOKS[row % 2])}
        figure.update_layout({f"yaxis{_axis(row)[1:]}": {**place, **scale}})
    figure.update_xaxes(anchor=_axis(n - 1))
    return styled(figure, height=190 * n + 110, hovermode="x unified", showlegend=False)


def _curves_of_both(sources: dict[str, Metrics], metrics: Sequence[str]) -> dict[str, list[pd.Series]]:
    """The curve of each metric by side; raises if one of the sides lacks one."""
    frames = {side: metrics_frame(source) for side, source in sources.items()}
    recorded = {side: [str(c) for c in frame.dropna(axis=1, how="all")] for side, frame in frames.items()}
    lacking = [f"the {side} has no {name}" for name in metrics for side in recorded if name not in recorded[side]]
    if lacking or not metrics:
        common = [name for name in recorded["run"] if name in recorded["evaluation"]]
        raise ValueError(f"{', '.join(lacking) or 'no metric to draw'}; both have {common}")
    return {side: [_curve(frame, name) for name in metrics] for side, frame in frames.items()}


def intervals(evaluated: Metrics, curve: pd.Series) -> pd.DataFrame:
    """Low and high end of the 95 % t interval of the mean over prompts, by step; empty without values of prompts."""
    ends: dict[int, tuple[float, float]] = {}
    values_at = None if isinstance(evaluated, pd.DataFrame) else getattr(evaluated, "values", None)
    if values_at is not None:
        for step in curve.index:
            values = np.asarray(values_at(step).get(curve.name, ()), dtype=float)
            values = values[~np.isnan(values)]
            if (n := len(values)) > 1:
                reach = stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n)
                ends[step] = (values.mean() - reach, values.mean() + reach)
    return pd.DataFrame.from_dict(ends, orient="index", columns=["low", "high"], dtype=float)


def _curve(metrics: pd.DataFrame, column: str) -> pd.Series:
    """The steps at which `column` has a value, ascending."""
    require_numbers(metrics, column)
    curve = metrics[column].astype(float).dropna().sort_index()
    if curve.empty:
        raise ValueError(f"{column} has no value at any step")
    return curve


def _columns_by_layer(columns: list[str], metric: str, site: str) -> dict[str, str]:
    """Row label -> column of the metric, from the lowest row to the highest."""
    pattern = re.compile(rf"{re.escape(metric)}@blocks\.(\d+)\.(.+)")
    matches = [match for column in columns if (match := pattern.fullmatch(column))]
    rows = {match[1]: match[0] for match in sorted(matches, key=lambda m: int(m[1])) if match[2] == site}
    if not rows:
        known = sorted({match[2] for match in matches})
        cure = f"choose from {known}" if known else f'measure "{metric}@*"'
        raise ValueError(f"no {metric} was recorded at {site} of any layer; {cure}")
    drawn = {*rows.values()}
    bottom = [f"{metric}@{hook}" for hook in ("blocks.0.hook_resid_pre", "hook_embed")]
    top = [f"{metric}@{FINAL}", *(["collapse"] if metric == "collapse" else [])]  # `collapse` itself is read there
    ends = {EMBEDDED: [c for c in bottom if c in columns and c not in drawn], TOP: [c for c in top if c in columns]}
    first = {label: candidates[0] for label, candidates in ends.items() if candidates}
    return {EMBEDDED: first[EMBEDDED], **rows, **first} if EMBEDDED in first else rows | first


def _extent(column: str, values: np.ndarray) -> tuple[float, float]:
    """Least and greatest value; of a share or a cosine at least 0 to 1."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (min(low, 0.0), max(high, 1.0)) if column.partition("@")[0] in UNIT_METRICS else (low, high)


def _range(curve: pd.Series, band: pd.DataFrame) -> list[float]:
    """The y axis of a curve with its band, with a margin."""
    low, high = _extent(str(curve.name), np.concatenate([curve, band.low, band.high]))
    margin = 0.04 * (high - low) or 0.5
    return [low - margin, high + margin]


def _axis(row: int) -> str:
    return f"y{row + 1}" if row else "y"


def _axis_in_color(curve: pd.Series, look: dict[str, str]) -> dict[str, Any]:
    """Title and labels of a y axis in the color of its curve."""
    ink = {"color": look["color"]}
    return {"title": {"text": title_of(str(curve.name)), "font": ink}, "tickfont": ink}


def _name(source: Metrics) -> str:
    """The name of an `EvaluatedCheckpoints` or a Run; empty for a metrics frame."""
    if isinstance(source, pd.DataFrame):
        return ""
    path = getattr(source, "path", None)
    return str(getattr(source, "name", "") or (path.name if path is not None else ""))


def _titled(source: Metrics, text: str) -> dict[str, Any]:
    name = _name(source)
    return {"text": f"{name}: {text}" if name else text}
