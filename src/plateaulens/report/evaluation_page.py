"""The report on an evaluation of checkpoints."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from plateaulens import plots
from plateaulens.lm.evaluation import EvaluatedCheckpoints
from plateaulens.lm.known_issues import reports_for
from plateaulens.report.page import write_page
from plateaulens.runs.run import Run

N_SAMPLES = 4  # prompts whose generated text is shown
TITLES = {"collapse": "peak collapse", "repetition": "peak repetition"}


def evaluation_report(evaluated: EvaluatedCheckpoints, compare_with: Run | None = None) -> Path:
    """Write `report.html` into the folder of the evaluation.

    Args:
        evaluated: Results of the evaluation.
        compare_with: A run to show on the same axes.

    Raises:
        ValueError: When no step was evaluated yet.
    """
    metrics = evaluated.metrics
    if metrics.empty:
        raise ValueError(f"{evaluated.path} has no evaluated step yet; run plateaulens checkpoints evaluate")
    figures = {}
    if set(TITLES) <= set(metrics) and metrics[list(TITLES)].notna().any().all():  # a single token has no pair
        figures["early"] = plots.early(evaluated)
    if compare_with is not None:
        figures["comparison"] = plots.side_by_side(compare_with, evaluated)
    columns = [str(column).partition("@") for column in metrics if metrics[column].notna().any()]
    layered = dict.fromkeys(metric for metric, _, site in columns if site.startswith("blocks."))
    maps = {f"layers-{metric}": plots.layer_steps(evaluated, metric) for metric in layered}
    return write_page(
        evaluated.path / "report.html",
        "evaluation.html.j2",
        title=evaluated.name,
        headline=_headline(metrics, evaluated),
        figures={**figures, **maps},
        maps=list(maps),
        n_new=evaluated.config["n_new"],
        prompts=evaluated.config["prompts"],
        samples=_samples(evaluated),
        table=_table(metrics),
        evidence=_evidence(evaluated),
        reports=[str(report) for report in reports_for(evaluated.name)],
        provenance={name: v if isinstance(v, str) else json.dumps(v) for name, v in evaluated.config.items()},
    )


def _evidence(evaluated: EvaluatedCheckpoints) -> list[str]:
    """The audit's evidence against the evaluated steps."""
    evidence = ((step, evaluated.step(step).get("evidence")) for step in evaluated.steps)
    return [f"step {step}: {line}" for step, line in evidence if line]


def _headline(metrics: pd.DataFrame, evaluated: EvaluatedCheckpoints) -> dict[str, str]:
    lines = {"steps": f"{len(metrics)}, {metrics.index[0]} to {metrics.index[-1]}"}
    for name, title in TITLES.items():
        if name in metrics and metrics[name].notna().any():
            lines[title] = f"{metrics[name].max():.3f} at step {metrics[name].idxmax()}"
            lines[f"{name} first, last"] = f"{metrics[name].iloc[0]:.3f}, {metrics[name].iloc[-1]:.3f}"
    reruns = int(metrics.near_ties.sum())
    return lines | {"prompts with near ties": f"{reruns} of {len(metrics) * evaluated.config['prompts']}"}


def _samples(evaluated: EvaluatedCheckpoints) -> list[dict[str, Any]]:
    """The first prompts with the text that each step generates after them, where the suite has a tokenizer."""
    records = {step: evaluated.step(step) for step in evaluated.steps}
    texts = {step: record["generated_text"] for step, record in records.items() if record.get("generated_text")}
    prompts = evaluated.config.get("texts", [])
    return [
        {"prompt": prompts[i], "steps": {f"step {step}": _show_whitespace(text[i]) for step, text in texts.items()}}
        for i in range(min(N_SAMPLES, len(prompts)))
        if texts
    ]


def _show_whitespace(text: str) -> str:
    """The text with symbols for line breaks and tabs, which early models generate a lot."""
    return text.replace("\n", "⏎").replace("\t", "⇥")


def _table(metrics: pd.DataFrame) -> dict[str, Any]:
    plain = metrics[[c for c in metrics if "blocks." not in str(c) and metrics[c].map(pd.api.types.is_number).all()]]
    rows = [(step, [f"{v:.3f}" if v % 1 else f"{v:.0f}" for v in row]) for step, row in zip(plain.index, plain.values)]
    return {"columns": [str(c).replace("@unembed.hook_in", ", final") for c in plain], "rows": rows}
