"""The page about a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plateaulens import plots
from plateaulens.analysis.checkpoint_steps import evenly
from plateaulens.analysis.checkpoint_traces import CheckpointTraces, trace_checkpoints
from plateaulens.analysis.plateau import Plateau
from plateaulens.analysis.step_patching import patch_across_steps
from plateaulens.report.page import write_page
from plateaulens.report.probe_results import plateau_of, results
from plateaulens.report.sections import Section, named_sections
from plateaulens.runs.run import Run

EXAMPLES = 4
GRID = 8  # steps on each side of the patching grid


def run_report(run: Run, sections: Sequence[Section] = ()) -> Path:
    """Write `report.html` into the run's folder: headline, figures, sample predictions, provenance.

    Args:
        run: a run with at least one measured step.
        sections: sections that replace the figures of a sequence task.

    Raises:
        ValueError: when the run has no metrics yet.
    """
    metrics = run.metrics
    if metrics.empty:
        raise ValueError(f"{run.path} has no metrics yet; train it first")
    plateau = plateau_of(run)
    figures = {}
    if not sections and plots.curves.panels_of(map(str, metrics)):
        figures["dynamics"] = plots.dynamics(run, plateau)
    if "position_accuracy" in metrics:
        figures["positions"] = plots.position_accuracy(run)
    if "part_accuracy" in metrics and run.task is not None:
        figures["parts"] = plots.part_accuracy(run)
    if any(str(column).startswith("collapse@") for column in metrics):
        figures["sites"] = plots.sites(run)
    samples: list[dict[str, Any]] = []
    inside = run.steps and run.task is not None and run.model_config is not None and run.has_eval_batch
    if inside and (eval_batch := run.eval_batch()).is_decoded:
        eval_batch = eval_batch[:64]
        evolution = trace_checkpoints(run, eval_batch)
        _, layers, heads = evolution.pattern.shape[:3]
        if layers * heads == 1:
            figures["attention"] = plots.attention_map(evolution)
        else:
            figures["layers"] = plots.layer_maps(evolution)
        figures["cosine"] = plots.cosine_map(evolution)
        if len(run.steps) > 1:
            steps = evenly(run.steps, GRID)
            grid = patch_across_steps(run, eval_batch, sources=steps, targets=steps, progress=False)
            figures["step_grid"] = plots.step_grid(grid)
        samples = _samples(run, evolution, plateau)
    kept, named = results(run), named_sections(sections)
    return write_page(
        run.path / "report.html",
        "run.html.j2",
        title=f"{run.config['task']['task']} · {run.path.name}",
        headline=headline(run, plateau),
        figures=figures
        | {name: section.figure for name, section in named.items()}
        | {result.name: result.figure for result in kept},
        sections=named,
        results=kept,
        samples=samples,
        heads=run.config["model"].get("n_heads", 1),
        provenance=_provenance(run),
    )


def headline(run: Run, plateau: Plateau | None) -> dict[str, str]:
    """The run in a few numbers."""
    metrics = run.metrics
    lines: dict[str, str] = {"steps": f"{metrics.index[-1]}"}
    if plateau is not None:
        if plateau.start is None:
            lines["plateau"] = "not reached"
        else:
            end = "the end, so far" if plateau.end is None else f"step {plateau.end}"
            lines["plateau"] = f"step {plateau.start} to {end}"
            on = metrics.loss.loc[plateau.start : plateau.end]
            lines["plateau loss"] = f"{on.median():.4f} (analytic {plateau.level:.4f})"
        lines["drop"] = "not seen" if plateau.drop is None else f"step {plateau.drop}"
    for name, label in (("collapse", "peak collapse"), ("repetition", "peak repetition")):
        if name in metrics and metrics[name].notna().any():
            lines[label] = f"{metrics[name].max():.3f} at step {metrics[name].idxmax()}"
    if "masked_loss" in metrics:
        lines["final loss, hidden cells"] = f"{metrics.masked_loss.iloc[-1]:.4f}"
    if "accuracy" in metrics:
        lines["final accuracy"] = f"{metrics.accuracy.iloc[-1]:.3f}"
    if "exact_match" in metrics:
        lines["final exact match"] = f"{metrics.exact_match.iloc[-1]:.3f}"
    return lines


def _samples(run: Run, evolution: CheckpointTraces, plateau: Plateau | None) -> list[dict[str, Any]]:
    """Some prompts with the answers given on the plateau (its middle checkpoint) and at the end."""
    if plateau is None or plateau.start is None:
        middle = 0.0
    else:
        middle = (plateau.start + (plateau.end if plateau.end is not None else evolution.steps[-1])) / 2
    on = min(range(len(evolution.steps)), key=lambda i: abs(evolution.steps[i] - middle))
    batch, decode = evolution.batch, run.task.decode if run.task else str
    rows = []
    for i in range(min(EXAMPLES, len(batch))):
        truth = [t for t in batch.answers[i].tolist() if t >= 0]
        guesses = {
            f"step {evolution.steps[k]}": [
                (decode(torch.tensor([g])), g == t) for g, t in zip(evolution.generated[k, i], truth)
            ]
            for k in (on, len(evolution.steps) - 1)
        }
        prompt = decode(batch.tokens[i, : int(batch.answer_positions[i, 0]) + 1])
        rows.append({"prompt": prompt, "truth": " ".join(decode(torch.tensor([t])) for t in truth), "guesses": guesses})
    return rows


def _provenance(run: Run) -> dict[str, str]:
    shown = ("task", "model", "train", "record", "interventions", "versions", "git", "device", "threads", "created")
    return {
        key: json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in run.config.items()
        if key in shown
    }
