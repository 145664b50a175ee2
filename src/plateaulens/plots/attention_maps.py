"""Maps with a slider over training steps."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from plateaulens.plots.style import styled


def attention_map(evolution: Any, layer: int = 0, head: int = 0) -> go.Figure:
    """The attention pattern at each checkpoint, output rows and all, averaged over prompts.

    Colors are centered on 0, since linear attention is signed.

    Raises:
        ValueError: for a layer or head that the model does not have.
    """
    _, layers, heads = evolution.pattern.shape[:3]
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if not 0 <= value < count:
            raise ValueError(f"{name} must lie in 0..{count - 1}, got {value}")
    maps = evolution.pattern[:, layer, head]
    limits = np.abs(maps).max((1, 2))
    title = f"attention pattern, layer {layer}, head {head}"
    return _slider(maps, evolution.steps, title, "key", "query", [(-float(m or 1), float(m or 1)) for m in limits])


def cosine_map(evolution: Any) -> go.Figure:
    """Cosine similarity of the hidden states of all pairs of outputs, at each checkpoint."""
    title = "cosine of hidden states after the final norm"
    return _slider(evolution.cosine, evolution.steps, title, "output", "output", [(-1.0, 1.0)] * len(evolution.steps))


def layer_maps(evolution: Any) -> go.Figure:
    """The attention patterns of all layers (rows) and heads (columns) at each checkpoint, averaged over prompts.

    Colors are centered on 0; all maps of a step share their scale, which changes from step to step.
    """
    pattern = evolution.pattern
    _, layers, heads = pattern.shape[:3]
    limits = np.abs(pattern).max((1, 2, 3, 4))

    def heats(i: int) -> list[go.Heatmap]:
        maps, limit = pattern[i].reshape(layers * heads, *pattern.shape[3:]), float(limits[i] or 1)
        return [_heat(z, -limit, limit).update(showscale=j == 0) for j, z in enumerate(maps)]

    titles = [f"layer {i}, head {j}" for i in range(layers) for j in range(heads)]
    gaps = {"vertical_spacing": 0.25 / layers, "horizontal_spacing": 0.15 / heads}
    figure = make_subplots(layers, heads, subplot_titles=titles, **gaps)
    for j, heat in enumerate(heats(0)):
        figure.add_trace(heat, j // heads + 1, j % heads + 1)
    every = list(range(layers * heads))
    figure.frames = [go.Frame(data=heats(i), name=str(s), traces=every) for i, s in enumerate(evolution.steps)]
    figure.update_xaxes(constrain="domain", showticklabels=False)
    figure.update_yaxes(autorange="reversed", constrain="domain", showticklabels=False)
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    figure.update_xaxes(title="key", showticklabels=True, row=layers)
    figure.update_yaxes(title="query", showticklabels=True, col=1)
    figure.update_annotations(font_size=max(8, 16 - heads))  # a title must fit above its map
    height = 200 + layers * max(110, min(400, 800 // heads))
    styled(figure, height=height, title="attention patterns", sliders=[slider_of(evolution.steps)])
    return figure.update_layout(margin_t=90)  # the titles of the first row lie below the figure's


def _slider(
    maps: Float[np.ndarray, "step row column"],
    steps: list[int],
    title: str,
    x: str,
    y: str,
    limits: list[tuple[float, float]],
) -> go.Figure:
    frames = [go.Frame(data=[_heat(maps[i], *limits[i])], name=str(step)) for i, step in enumerate(steps)]
    figure = go.Figure(_heat(maps[0], *limits[0]), frames=frames)
    figure.update_xaxes(title=x, constrain="domain")
    figure.update_yaxes(title=y, autorange="reversed", scaleanchor="x", constrain="domain")
    return styled(figure, height=560, title=title, sliders=[slider_of(steps)])


def _heat(z: Float[np.ndarray, "row column"], low: float, high: float) -> go.Heatmap:
    return go.Heatmap(z=z, zmin=low, zmax=high, colorscale="RdBu", reversescale=True)


def slider_of(steps: list[int]) -> dict[str, Any]:
    """A slider over frames that are named by their step."""
    jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    marks = [{"label": str(s), "method": "animate", "args": [[str(s)], jump]} for s in steps]
    return {"steps": marks, "currentvalue": {"prefix": "step "}, "pad": {"t": 50}}
