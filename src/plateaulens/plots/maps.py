"""Maps with a slider over training steps."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from plateaulens.plots.style import styled


def attention_map(evolution: Any, layer: int = 0, head: int = 0) -> go.Figure:
    """The attention pattern at each checkpoint, output rows and all, averaged over prompts.

    Colours are centred on 0, since linear attention is signed.

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


def _slider(
    maps: Float[np.ndarray, "step row column"],
    steps: list[int],
    title: str,
    x: str,
    y: str,
    limits: list[tuple[float, float]],
) -> go.Figure:
    def heat(i: int) -> go.Heatmap:
        low, high = limits[i]
        return go.Heatmap(z=maps[i], zmin=low, zmax=high, colorscale="RdBu", reversescale=True)

    figure = go.Figure(heat(0), frames=[go.Frame(data=[heat(i)], name=str(step)) for i, step in enumerate(steps)])
    jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    marks = [{"label": str(s), "method": "animate", "args": [[str(s)], jump]} for s in steps]
    figure.update_xaxes(title=x, constrain="domain")
    figure.update_yaxes(title=y, autorange="reversed", scaleanchor="x", constrain="domain")
    slider = {"steps": marks, "currentvalue": {"prefix": "step "}, "pad": {"t": 50}}
    return styled(figure, height=560, title=title, sliders=[slider])
