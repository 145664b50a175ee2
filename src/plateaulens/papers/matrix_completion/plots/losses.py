"""Losses of matrix completion: over training, of probes after each layer, and on other distributions."""

import re

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from plateaulens.plots.inputs import Metrics, PlateauSteps, metrics_frame
from plateaulens.plots.style import BLUE, GRAY, GREEN, LEGEND, ORANGE, distinct, stacked, stacked_style, styled

LOSS_COLORS = {"loss": BLUE, "observed_loss": GREEN, "masked_loss": ORANGE}


def completion(run: Metrics, plateau: PlateauSteps | None = None) -> go.Figure:
    """Losses over all, observed and masked cells over training: copying, then completion (arXiv 2410.22244, fig. 2).

    Args:
        run: A run or a DataFrame of metrics by step.
        plateau: Result of `find_plateau`, drawn as a gray band, with its analytic level and the drop.

    Raises:
        ValueError: If the losses over observed and masked cells were not recorded.
    """
    metrics = metrics_frame(run)
    if missing := [name for name in LOSS_COLORS if name not in metrics]:
        raise ValueError(f"{', '.join(missing)} was not recorded; record them with metrics=")
    panels = ["mean squared error"] + ["mean |prediction| at masked cells"] * ("masked_size" in metrics)
    figure = stacked(panels)
    for name, color in LOSS_COLORS.items():
        line = {"color": color, "width": 3 if name == "loss" else 1.5}
        figure.add_trace(go.Scatter(x=metrics.index, y=metrics[name], name=name, mode="lines", line=line), 1, 1)
    if "masked_size" in metrics:
        curve = go.Scatter(x=metrics.index, y=metrics.masked_size, name="masked_size", mode="lines")
        figure.add_trace(curve.update(line={"color": GRAY}), 2, 1)
    figure.update_yaxes(type="log", exponentformat="power", row=1, col=1)
    if plateau is not None:
        dashed = {"color": BLUE, "dash": "dash", "width": 1}
        note = {"annotation_text": f"analytic plateau {plateau.level:.4f}", "annotation_position": "top right"}
        figure.add_hline(plateau.level, line=dashed, row=1, col=1, **note)
        if plateau.start is not None:
            end = int(metrics.index.max()) if plateau.end is None else plateau.end
            figure.add_vrect(plateau.start, end, fillcolor=GRAY, opacity=0.15, line_width=0, row="all", col=1)
        if plateau.drop is not None:
            figure.add_vline(plateau.drop, line={"color": GRAY, "dash": "dot"}, row="all", col=1)
    return stacked_style(figure, len(panels), hovermode="x unified")


def cell_probes(scores: xr.Dataset) -> go.Figure:
    """Losses of probes after each layer relative to predicting 0, and mean cosines of vectors (fig. 6).

    For entries, dotted lines are the loss over observed cells and dashed lines that over masked cells.

    Args:
        scores: Result of `probe_cells` for one model.

    Raises:
        ValueError: For several steps.
    """
    if "step" in scores.dims:
        raise ValueError("cell_probes draws one step; choose one: scores.sel(step=...)")
    titles = ["test loss / loss of predicting 0", "mean |cosine| with the truth"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    layers = [_layer_name(str(site)) for site in scores.site.values]
    for i, name in enumerate(scores.feature.values):
        feature, line = scores.sel(feature=name), distinct(i)
        for kind, dash in (("", "solid"), ("observed_", "dot"), ("masked_", "dash")):
            if kind and name != "element":
                continue
            label = f"{name}, {kind[:-1]} cells" if kind else name
            y = (feature[f"{kind}loss"] / feature.zero_loss).values
            curve = go.Scatter(x=layers, y=y, name=label, mode="lines+markers", line={**line, "dash": dash})
            figure.add_trace(curve.update(legendgroup=label), 1, 1)
        if feature.absolute_cosine.notnull().any():
            curve = go.Scatter(
                x=layers, y=feature.absolute_cosine.values, mode="lines+markers", line=line, showlegend=False
            )
            figure.add_trace(curve.update(name=name, legendgroup=name), 1, 2)
    figure.update_xaxes(title="after")
    figure.update_yaxes(rangemode="tozero", col=1)
    figure.update_yaxes(range=[0, 1.02], col=2)
    return styled(figure, height=420, legend=LEGEND)


def ood_losses(losses: xr.Dataset, x: str = "shift") -> go.Figure:
    """Losses and nuclear norms of the model and of nuclear-norm minimization on other distributions (figs. 3, 19).

    Losses are on logarithmic axes. Shifts that are names instead of numbers are drawn as marks without lines.

    Args:
        losses: Result of `evaluate_ood`.
        x: Title of the horizontal axis.
    """
    titles = ["squared error, all cells", "squared error, masked cells", "nuclear norm"]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.08)
    is_numeric = losses["shift"].dtype.kind in "if"
    shifts = losses["shift"].values.tolist()
    mode = "lines+markers" if is_numeric else "markers"
    references = {"masked_loss": ("predicting 0", "zero_loss"), "nuclear_norm": ("true matrices", "true_nuclear_norm")}
    for panel, name in enumerate(("loss", "masked_loss", "nuclear_norm"), 1):
        lines = {str(solver): losses[name].sel(solver=solver).values for solver in losses.solver.values}
        if name in references:
            label, reference = references[name]
            lines[label] = losses[reference].values
        for (label, y), color in zip(lines.items(), (BLUE, ORANGE, GRAY)):
            line = {"color": color, "dash": "dot" if color == GRAY else "solid"}
            curve = go.Scatter(x=shifts, y=y, name=label, mode=mode, line=line, marker={"size": 7, "color": color})
            in_legend = panel == 1 or color == GRAY
            figure.add_trace(curve.update(legendgroup=label, showlegend=in_legend), 1, panel)
    figure.update_xaxes(title=x, **({} if is_numeric else {"type": "category"}))
    for panel in (1, 2):
        figure.update_yaxes(type="log", exponentformat="power", nticks=6, col=panel)
    figure.update_yaxes(rangemode="tozero", col=3)
    return styled(figure, height=420, legend=LEGEND)


def _layer_name(site: str) -> str:
    block = re.match(r"blocks\.(\d+)\.", site)
    return f"layer {int(block[1])}" if block else site
