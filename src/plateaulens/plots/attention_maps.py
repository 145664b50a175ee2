"""Heat maps of attention and of hidden states, with a slider over training steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from plateaulens.plots.inputs import CosinesByStep, PatternsByStep
from plateaulens.plots.style import styled


def attention_map(traces: PatternsByStep, layer: int = 0, head: int = 0) -> go.Figure:
    """Attention pattern of one head at each checkpoint, averaged over prompts; rows are queries, columns keys.

    Colors are centered on 0, since linear attention is signed.

    Args:
        traces: Result of `trace_checkpoints`.
        layer: Index of the layer.
        head: Index of the head.

    Raises:
        ValueError: for a layer or head that the model does not have.
    """
    _, layers, heads = traces.pattern.shape[:3]
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if not 0 <= value < count:
            raise ValueError(f"{name} must be in 0..{count - 1}, got {value}")
    maps = traces.pattern[:, layer, head]
    limits = [(-limit, limit) for limit in (float(limit or 1) for limit in np.abs(maps).max((1, 2)))]
    return _map_by_step(maps, traces.steps, f"attention pattern, layer {layer}, head {head}", ("key", "query"), limits)


def cosine_map(traces: CosinesByStep) -> go.Figure:
    """Cosine similarity of the hidden states of each pair of answer positions, at each checkpoint.

    Args:
        traces: Result of `trace_checkpoints`.
    """
    title, limits = "cosine of hidden states after the final norm", [(-1.0, 1.0)] * len(traces.steps)
    return _map_by_step(traces.cosine, traces.steps, title, ("output", "output"), limits)


def layer_maps(traces: PatternsByStep) -> go.Figure:
    """Attention patterns of all layers (rows) and heads (columns) at each checkpoint, averaged over prompts.

    Colors are centered on 0; all maps of a step have one scale, which changes from step to step.

    Args:
        traces: Result of `trace_checkpoints`.
    """
    pattern = traces.pattern
    _, layers, heads = pattern.shape[:3]
    limits = np.abs(pattern).max((1, 2, 3, 4))

    def heatmaps(i: int) -> list[go.Heatmap]:
        maps, limit = pattern[i].reshape(layers * heads, *pattern.shape[3:]), float(limits[i] or 1)
        return [_heatmap(z, -limit, limit).update(showscale=j == 0) for j, z in enumerate(maps)]

    titles = [f"layer {i}, head {j}" for i in range(layers) for j in range(heads)]
    gaps = {"vertical_spacing": 0.25 / layers, "horizontal_spacing": 0.15 / heads}
    figure = make_subplots(layers, heads, subplot_titles=titles, **gaps)
    for j, heatmap in enumerate(heatmaps(0)):
        figure.add_trace(heatmap, j // heads + 1, j % heads + 1)
    panels = list(range(layers * heads))
    figure.frames = [go.Frame(data=heatmaps(i), name=str(step), traces=panels) for i, step in enumerate(traces.steps)]
    figure.update_xaxes(constrain="domain", showticklabels=False)
    figure.update_yaxes(autorange="reversed", constrain="domain", showticklabels=False)
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    figure.update_xaxes(title="key", showticklabels=True, row=layers)
    figure.update_yaxes(title="query", showticklabels=True, col=1)
    figure.update_annotations(font_size=max(8, 16 - heads))  # a title must fit above its map
    height = 200 + layers * max(110, min(400, 800 // heads))
    styled(figure, height=height, title="attention patterns", sliders=[step_slider(traces.steps)])
    return figure.update_layout(margin_t=90)  # the titles of the first row are below the title of the figure


def step_slider(steps: Sequence[int]) -> dict[str, Any]:
    """A slider over frames whose names are their steps."""
    jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    marks = [{"label": str(s), "method": "animate", "args": [[str(s)], jump]} for s in steps]
    return {"steps": marks, "currentvalue": {"prefix": "step "}, "pad": {"t": 50}}


def _map_by_step(
    maps: Float[np.ndarray, "step row column"],
    steps: Sequence[int],
    title: str,
    axes: tuple[str, str],
    limits: list[tuple[float, float]],
) -> go.Figure:
    """One heat map with a slider; `axes` are the titles of x and y, `limits` the color scale of each step."""
    frames = [go.Frame(data=[_heatmap(maps[i], *limits[i])], name=str(step)) for i, step in enumerate(steps)]
    figure = go.Figure(_heatmap(maps[0], *limits[0]), frames=frames)
    figure.update_xaxes(title=axes[0], constrain="domain")
    figure.update_yaxes(title=axes[1], autorange="reversed", scaleanchor="x", constrain="domain")
    return styled(figure, height=560, title=title, sliders=[step_slider(steps)])


def _heatmap(z: Float[np.ndarray, "row column"], low: float, high: float) -> go.Heatmap:
    return go.Heatmap(z=z, zmin=low, zmax=high, colorscale="RdBu", reversescale=True)
