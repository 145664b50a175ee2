"""The report page of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import torch

from plateaulens import plots
from plateaulens.analysis.checkpoint_steps import evenly_spaced
from plateaulens.analysis.checkpoint_traces import CheckpointTraces, trace_checkpoints
from plateaulens.analysis.plateau import Plateau
from plateaulens.analysis.step_patching import patch_across_steps
from plateaulens.plots.curves import panels_of
from plateaulens.report.page import write_page
from plateaulens.report.probe_results import plateau_of, results
from plateaulens.report.sections import Section, named_sections
from plateaulens.runs.run import Run

N_SAMPLES = 4  # example prompts on the page
MAX_GRID_STEPS = 8  # steps on each side of the patching grid
MAX_TRACED = 64  # prompts of the maps and of the patching grid
PROVENANCE = ("task", "model", "train", "record", "interventions", "versions", "git", "device", "threads", "created")


@dataclass(frozen=True)
class Sample:
    """A prompt with its true answer and the answers of the model.

    Attributes:
        prompt: The prompt.
        truth: The true answer.
        answers: Tokens of the answer at each step, and whether each is right, by the name of the step.
    """

    prompt: str
    truth: str
    answers: dict[str, list[tuple[str, bool]]]


def run_report(run: Run, sections: Sequence[Section] = ()) -> Path:
    """Write `report.html` into the run's folder: headline, figures, sample answers, provenance.

    Args:
        run: A run with at least one measured step.
        sections: Sections that replace the figures of a sequence task.

    Raises:
        ValueError: when the run has no metrics yet.
    """
    if run.metrics.empty:
        raise ValueError(f"{run.path} has no metrics yet; train it first")
    plateau = plateau_of(run)
    figures = _metric_figures(run, plateau, dynamics=not sections)
    traces = _traces(run)
    if traces is not None:
        figures |= _map_figures(run, traces)
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
        samples=[] if traces is None else _samples(run, traces, plateau),
        heads=run.config["model"].get("n_heads", 1),
        provenance={
            key: json.dumps(value) if isinstance(value, dict | list) else str(value)
            for key, value in run.config.items()
            if key in PROVENANCE
        },
    )


def headline(run: Run, plateau: Plateau | None) -> dict[str, str]:
    """The most important numbers of a run as text, by their label.

    Args:
        run: A run with at least one measured step.
        plateau: Result of `find_plateau`, or None where the loss levels of the task are not known.
    """
    metrics = run.metrics
    lines = {"steps": f"{metrics.index[-1]}"}
    if plateau is not None:
        if plateau.start is None:
            lines["plateau"] = "not reached"
        else:
            end = "the last step" if plateau.end is None else f"step {plateau.end}"
            lines["plateau"] = f"step {plateau.start} to {end}"
            loss = metrics.loss.loc[plateau.start : plateau.end].median()
            lines["plateau loss"] = f"{loss:.4f} (analytic {plateau.level:.4f})"
        lines["drop"] = "not reached" if plateau.drop is None else f"step {plateau.drop}"
    for name, label in (("collapse", "peak collapse"), ("repetition", "peak repetition")):
        if name in metrics and metrics[name].notna().any():
            lines[label] = f"{metrics[name].max():.3f} at step {metrics[name].idxmax()}"
    if "masked_loss" in metrics:
        lines["final loss, hidden cells"] = f"{metrics.masked_loss.iloc[-1]:.4f}"
    for name, label in (("accuracy", "final accuracy"), ("exact_match", "final exact match")):
        if name in metrics:
            lines[label] = f"{metrics[name].iloc[-1]:.3f}"
    return lines


def _metric_figures(run: Run, plateau: Plateau | None, *, dynamics: bool) -> dict[str, go.Figure]:
    """Figures of the recorded metrics, by the name of their place on the page."""
    metrics = run.metrics
    figures = {}
    if dynamics and panels_of(map(str, metrics)):
        figures["dynamics"] = plots.dynamics(run, plateau)
    if "position_accuracy" in metrics:
        figures["positions"] = plots.position_accuracy(run)
    if "part_accuracy" in metrics and run.task is not None:
        figures["parts"] = plots.part_accuracy(run)
    if any(str(column).startswith("collapse@") for column in metrics):
        figures["sites"] = plots.sites(run)
    return figures


def _traces(run: Run) -> CheckpointTraces | None:
    """The checkpoints traced on evaluation prompts; None without a model, such prompts, or answers to decode."""
    if not (run.steps and run.task is not None and run.model_config is not None and run.has_eval_batch):
        return None
    eval_batch = run.eval_batch()
    return trace_checkpoints(run, eval_batch[:MAX_TRACED]) if eval_batch.is_decoded else None


def _map_figures(run: Run, traces: CheckpointTraces) -> dict[str, go.Figure]:
    """Figures of attention, of hidden states and of patching across steps."""
    _, layers, heads = traces.pattern.shape[:3]
    one_map = layers * heads == 1
    figures = {"attention": plots.attention_map(traces)} if one_map else {"layers": plots.layer_maps(traces)}
    figures["cosine"] = plots.cosine_map(traces)
    if len(run.steps) > 1:
        steps = evenly_spaced(run.steps, MAX_GRID_STEPS)
        grid = patch_across_steps(run, traces.batch, sources=steps, targets=steps, progress=False)
        figures["step_grid"] = plots.step_grid(grid)
    return figures


def _samples(run: Run, traces: CheckpointTraces, plateau: Plateau | None) -> list[Sample]:
    """Prompts with the answers of the checkpoint nearest to the middle of the plateau, and of the last one."""
    batch, decode = traces.batch, run.task.decode if run.task else str
    middle = 0.0
    if plateau is not None and plateau.start is not None:
        middle = (plateau.start + (traces.steps[-1] if plateau.end is None else plateau.end)) / 2
    on_plateau = min(range(len(traces.steps)), key=lambda i: abs(traces.steps[i] - middle))
    samples = []
    for i in range(min(N_SAMPLES, len(batch))):
        truth = [token for token in batch.answers[i].tolist() if token >= 0]
        answers = {
            f"step {traces.steps[k]}": [
                (decode(torch.tensor([token])), token == true)
                for token, true in zip(traces.generated[k, i].tolist(), truth)
            ]
            for k in (on_plateau, len(traces.steps) - 1)
        }
        prompt = decode(batch.tokens[i, : int(batch.answer_positions[i, 0]) + 1])
        samples.append(Sample(prompt, " ".join(decode(torch.tensor([token])) for token in truth), answers))
    return samples
