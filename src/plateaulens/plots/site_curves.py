"""A metric of hidden states at each site of the model over training."""

import re

import plotly.graph_objects as go

from plateaulens.plots.inputs import Metrics, metrics_frame, require_numbers
from plateaulens.plots.style import distinct, stacked, stacked_style

FINAL = "unembed.hook_in"  # the state after the final norm, as in `tracing`, which needs torch
SITE_ORDER = ["resid_pre", "attn_out", "resid_mid", "resid_post"]  # fixes the colors of the usual sites


def sites(run: Metrics, metric: str = "collapse") -> go.Figure:
    """`metric` at every recorded site over training: a panel for each layer, the state after the final norm last.

    A site has the same color in every panel, and all panels have the same scale. `resid_pre` of layer 0
    is the embeddings.

    Args:
        run: A run or a DataFrame with columns `METRIC@SITE`.
        metric: Name of a metric of hidden states, such as "collapse", "norm" or "effective_rank".

    Raises:
        ValueError: when no such column was recorded.
    """
    metrics = metrics_frame(run)
    recorded = [c.partition("@")[2] for c in map(str, metrics) if c.startswith(f"{metric}@")]
    if not recorded:
        raise ValueError(f'no {metric}@SITE was recorded; record with metrics=[..., "{metric}@*"]')
    panels: dict[str, dict[str, str]] = {}
    for site in sorted(recorded, key=_depth):
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
        title = f"layer {block[1]}" if block else "after the final norm" if site == FINAL else site
        panels.setdefault(title, {})[site] = (block[2] if block else title).replace("hook_", "")
    names = list(dict.fromkeys([*SITE_ORDER, *(name for panel in panels.values() for name in panel.values())]))
    figure = stacked([f"{metric}, {title}" for title in panels], shared_yaxes="all")
    in_legend: set[str] = set()
    for row, panel in enumerate(panels.values(), 1):
        for site in sorted(panel, key=lambda s: names.index(panel[s])):
            name, column = panel[site], f"{metric}@{site}"
            require_numbers(metrics, column)
            line = distinct(names.index(name))
            curve = go.Scatter(x=metrics.index, y=metrics[column], name=name, mode="lines", line=line)
            figure.add_trace(curve.update(legendgroup=name, showlegend=name not in in_legend), row, 1)
            in_legend.add(name)
    return stacked_style(figure, len(panels), hovermode="x unified", showlegend=True)


def _depth(site: str) -> tuple[int, int]:
    """Sort key: the layers in order, then sites outside of layers, the final one last."""
    block = re.match(r"blocks\.(\d+)\.", site)
    return (0, int(block[1])) if block else (2 if site == FINAL else 1, 0)
