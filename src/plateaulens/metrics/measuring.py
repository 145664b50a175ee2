"""`measure`: measurements by name, of which only what they read is computed.

    measure(model, eval_batch, ["loss", "collapse", "norm@*"])        # {"loss": ..., "collapse": ..., "norm@...": ...}

`NAME@SITE` measures hidden states at any hook, `NAME@*` at every residual site; `attention_progress@LAYER`
looks at one layer, `distinct@N` and `rep@N` at the generated n-grams.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens._registry import unknown
from plateaulens.batch import Batch
from plateaulens.hooks import matching, n_layers, sites
from plateaulens.metrics.named import (
    DEFAULT_METRICS,
    MATRIX_METRICS,
    METRICS,
    NGRAM_METRICS,
    STATE_METRICS,
    Metric,
    attention_progress,
    attention_progress_at,
    metric_at,
    ngram_metric,
)
from plateaulens.tracing.traces import FINAL, trace

RESIDUAL = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post")


def measure(
    model: Any,
    batch: Batch | Iterable[Batch],
    metrics: Sequence[Metric | str],
    reduce: str | None = "mean",
) -> dict[str, Tensor]:
    """Each measurement of `metrics` by name: the mean over prompts, or with `reduce=None` one value a prompt.

    Several batches count by their number of prompts. A plain function of a Trace is as good as a named
    measurement; it gets everything. A prompt whose answer is too short to have a value (the repetition of one
    token) is left out of the mean; any other NaN stays.

    Raises:
        ValueError: for an unknown measurement, an unknown `reduce`, or no batch at all.
    """
    if reduce not in ("mean", None):
        raise ValueError(f"reduce must be 'mean' or None, got {reduce!r}")
    functions = resolve(model, metrics)
    requires = required_by(functions)
    traces = (trace(model, b, requires) for b in ([batch] if isinstance(batch, Batch) else batch))
    values: dict[str, list[Tensor]] = {}
    short: list[Tensor] = []
    for t in traces:
        short.append(~t.valid.all(1))
        for function in functions:
            values.setdefault(function.__name__, []).append(torch.as_tensor(function(t)))
    if not values and functions:
        raise ValueError("nothing to measure: got no batch")
    return {name: _join(name, parts, short, reduce) for name, parts in values.items()}


def required_by(functions: Sequence[Metric], more: Sequence[str] = ()) -> list[str] | None:
    """What measurements read together, and more; None, everything, when one does not say."""
    stated = [getattr(f, "reads", None) for f in functions]
    return None if None in stated else list(dict.fromkeys([*more, *(n for names in stated for n in names or ())]))


def _join(name: str, parts: list[Tensor], short: list[Tensor], reduce: str | None) -> Tensor:
    if parts[0].ndim == 0:
        if len(parts) > 1:
            raise ValueError(f"{name} is one number a batch and has no mean over {len(parts)} batches; measure one")
        return parts[0]
    joined = torch.cat(parts)
    return mean_over_prompts(joined.float(), torch.cat(short)) if reduce else joined


def mean_over_prompts(values: Float[Tensor, "batch ..."], short: Bool[Tensor, " batch"]) -> Float[Tensor, "..."]:
    """The mean over prompts, those of a `short` answer that have no value left out.

    Rows of a vector a prompt (position accuracies) have NaN where a shorter answer has nothing.
    """
    if values.ndim > 1:
        return values.nanmean(0)
    return values[~(values.isnan() & short)].mean(0) if short.any() else values.mean(0)


def default_metrics(batch: Batch, model: Any) -> list[Metric | str]:
    """What a run records unless told otherwise: `DEFAULT_METRICS` (or the task's own) and what the task itself names.

    The task's maps belong to the last layers of a deeper model. Attention progress is left out for a task
    without an optimal map, and for a model with fewer layers than there are maps.

    Raises:
        ValueError: for prompts, and for a task that does not say.
    """
    if not hasattr(batch.task, "standard"):
        whose = "these prompts have" if batch.task is None else f"{batch.task!r} has"
        raise ValueError(f"{whose} no standard measurements; say which in metrics=[...]")
    if batch.task.default_metrics is not None:
        return [*batch.task.default_metrics, *batch.task.metrics]
    maps = batch.task.optimal_attention(batch[:1])
    deeper = n_layers(model) - len(maps) if maps is not None else -1
    metrics: list[Metric | str] = [m for m in DEFAULT_METRICS if deeper >= 0 or m is not attention_progress]
    for name in batch.task.metrics:
        metric, _, where = name.partition("@")
        if metric != "attention_progress":
            metrics.append(name)
        elif deeper >= 0:
            layer, colon, route = where.partition(":")
            metrics.append(f"{metric}@{int(layer) + deeper}{colon}{route}")
    return metrics


def named(measurement: Metric | str) -> Metric:
    """A measurement by name; functions pass through.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(measurement, str):
        return measurement
    name, _, where = measurement.partition("@")
    if where and name in STATE_METRICS:
        return metric_at(name, where)
    if name in NGRAM_METRICS and where.isascii() and where.isdigit():
        return ngram_metric(name, int(where))
    layer, _, route = where.partition(":")
    if name == "attention_progress" and layer.isascii() and layer.isdigit():
        return attention_progress_at(int(layer), route or "optimal")
    if name == "attention_progress" and where:
        raise unknown("measurement", measurement, ["attention_progress@0", "attention_progress@0:alternative"])
    if name in NGRAM_METRICS:
        raise unknown("measurement", measurement, [f"{metric}@2" for metric in NGRAM_METRICS])
    if where:
        raise unknown("measurement at a site", name, [*STATE_METRICS, *NGRAM_METRICS, "attention_progress"])
    if name not in (known := METRICS | MATRIX_METRICS):
        raise unknown("measurement", name, [*known, *(f"{metric}@*" for metric in STATE_METRICS)])
    return known[name]


def resolve(model: Any, metrics: Sequence[Metric | str]) -> list[Metric]:
    """The functions that `metrics` stands for on this model, each once.

    `NAME@GLOB` is every site that the glob matches, `NAME@*` every residual site. One name alone needs no list.

    Raises:
        ValueError: for an unknown name, or two functions of one name.
    """
    found: dict[str, Metric] = {}
    ours: set[str] = set()  # what is made for a name is made anew each time, and is the same
    for m in [metrics] if isinstance(metrics, str) else metrics:
        name, _, where = m.partition("@") if isinstance(m, str) else ("", "", "")
        if name in STATE_METRICS and any(c in where for c in "*?["):
            where_to = residual_sites(model) if where == "*" else matching(model, [where])
            functions = [metric_at(name, site) for site in where_to]
        else:
            functions = [named(m)]
        for f in functions:
            if found.setdefault(f.__name__, f) is not f and not (isinstance(m, str) and f.__name__ in ours):
                raise ValueError(f"two measurements are named {f.__name__!r}; give their functions different names")
        if isinstance(m, str):
            ours.update(f.__name__ for f in functions)
    return list(found.values())


def residual_sites(model: Any) -> list[str]:
    """Where the residual stream is read: around the attention and after the MLP of each layer, and at the end.

    Models whose attention and MLP run in parallel (GPT-NeoX) have no place between the two.
    """
    names = [f"blocks.{layer}.{name}" for layer in range(n_layers(model)) for name in RESIDUAL] + [FINAL]
    known = sites(model)
    return [name for name in names if name in known]
