"""A measurement of hidden states, site by site through the model."""

import re
from typing import Any

import plotly.graph_objects as go

from plateaulens.plots.curves import frame, require_numbers
from plateaulens.plots.style import distinct, stacked, stacked_style

FINAL = "unembed.hook_in"
ORDER = ["resid_pre", "attn_out", "resid_mid", "resid_post"]  # fixes their colors


def sites(run: Any, metric: str = "collapse") -> go.Figure:
    """`metric` at every recorded site over training: a panel per layer, the state after the final norm last.

    A site has the same color in every panel, and all panels have the same scale. `resid_pre` of layer 0
    is the embeddings.

    Args:
        run: a Run or a metrics frame with columns `METRIC@SITE`.
        metric: such as "collapse", "norm" or "effective_rank".

    Raises:
        ValueError: when no such column was recorded.
    """
    metrics = frame(run)
    recorded = [c.partition("@")[2] for c in map(str, metrics) if c.startswith(f"{metric}@")]
    if not recorded:
        raise ValueError(f'no {metric}@SITE was recorded; record with metrics=[..., "{metric}@*"]')
    panels: dict[str, dict[str, str]] = {}
    for site in sorted(recorded, key=_depth):
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
        title = f"layer {block[1]}" if block else "after the final norm" if site == FINAL else site
        panels.setdefault(title, {})[site] = (block[2] if block else title).replace("hook_", "")
    names = list(dict.fromkeys([*ORDER, *(name for panel in panels.values() for name in panel.values())]))
    figure = stacked([f"{metric}, {title}" for title in panels], shared_yaxes="all")
    seen: set[str] = set()
    for row, panel in enumerate(panels.values(), 1):
        for site in sorted(panel, key=lambda s: names.index(panel[s])):
            name, column = panel[site], f"{metric}@{site}"
            require_numbers(metrics, column)
            line, new = distinct(names.index(name)), name not in seen
            seen.add(name)
            curve = go.Scatter(x=metrics.index, y=metrics[column], name=name, mode="lines", line=line)
            figure.add_trace(curve.update(legendgroup=name, showlegend=new), row, 1)
    return stacked_style(figure, len(panels), hovermode="x unified", showlegend=True)


def _depth(site: str) -> tuple[int, int]:
    """Sort key: layers in order, then sites elsewhere, the final one last."""
    block = re.match(r"blocks\.(\d+)\.", site)
    return (0, int(block[1])) if block else (2 if site == FINAL else 1, 0)
