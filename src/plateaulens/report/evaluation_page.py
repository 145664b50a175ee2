"""The page about a survey."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from plateaulens import plots
from plateaulens.lm.evaluation import EvaluatedCheckpoints
from plateaulens.lm.known_issues import reports_for
from plateaulens.report.page import write_page

EXAMPLES = 4
TITLES = {"collapse": "peak collapse", "repetition": "peak repetition"}


def evaluation_report(evaluated: EvaluatedCheckpoints, compare_with: Any = None) -> Path:
    """Write `report.html` into the survey's folder.

    Raises:
        ValueError: when nothing was measured yet.
    """
    metrics = evaluated.metrics
    if metrics.empty:
        raise ValueError(f"{evaluated.path} has no measured step yet; plateaulens checkpoints measure")
    figures = {}
    if set(TITLES) <= set(metrics) and metrics[list(TITLES)].notna().any().all():  # one token alone has no pair
        figures["early"] = plots.early(evaluated)
    if compare_with is not None:
        figures["beside"] = plots.side_by_side(compare_with, evaluated)
    sited = [str(column).partition("@") for column in metrics if metrics[column].notna().any()]
    layered = dict.fromkeys(metric for metric, _, site in sited if site.startswith("blocks."))
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
    """What the audit found wrong with the steps that were measured."""
    found = ((step, evaluated.step(step).get("evidence")) for step in evaluated.steps)
    return [f"step {step}: {line}" for step, line in found if line]


def _headline(metrics: pd.DataFrame, evaluated: EvaluatedCheckpoints) -> dict[str, str]:
    lines = {"steps": f"{len(metrics)}, {metrics.index[0]} to {metrics.index[-1]}"}
    for name, title in TITLES.items():
        if name in metrics and metrics[name].notna().any():
            lines[title] = f"{metrics[name].max():.3f} at step {metrics[name].idxmax()}"
            lines[f"{name} first, last"] = f"{metrics[name].iloc[0]:.3f}, {metrics[name].iloc[-1]:.3f}"
    again = int(metrics.near_ties.sum())
    return lines | {"prompts run again alone": f"{again} of {len(metrics) * evaluated.config['prompts']}"}


def _samples(evaluated: EvaluatedCheckpoints) -> list[dict[str, Any]]:
    """The first prompts with what each step says to them, where the words are known."""
    kept = {step: evaluated.step(step) for step in evaluated.steps}
    said = {step: values["said"] for step, values in kept.items() if values.get("said")}
    texts = evaluated.config.get("texts", [])
    return [
        {"prompt": texts[i], "said": {f"step {step}": _seen(words[i]) for step, words in said.items()}}
        for i in range(min(EXAMPLES, len(texts)))
        if said
    ]


def _seen(text: str) -> str:
    """Line breaks and tabs in sight: an early model says little else."""
    return text.replace("\n", "⏎").replace("\t", "⇥")


def _table(metrics: pd.DataFrame) -> dict[str, Any]:
    plain = metrics[[c for c in metrics if "blocks." not in str(c) and metrics[c].map(pd.api.types.is_number).all()]]
    rows = [(step, [f"{v:.3f}" if v % 1 else f"{v:.0f}" for v in row]) for step, row in zip(plain.index, plain.values)]
    return {"columns": [str(c).replace("@unembed.hook_in", ", final") for c in plain], "rows": rows}
