"""`measure`: measurements by name, of which only what they read is computed.

    measure(model, eval_batch, ["loss", "collapse", "norm@*"])        # {"loss": ..., "collapse": ..., "norm@...": ...}

`NAME@SITE` measures hidden states at any hook, `NAME@*` at every residual site; `attention_progress@LAYER`
looks at one layer, `distinct@N` and `rep@N` at the generated n-grams.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens._registry import unknown
from plateaulens.batch import Batch
from plateaulens.hooks import hook_names, match_hooks, n_layers
from plateaulens.metrics.named import (
    METRICS,
    NGRAM_METRICS,
    STATE_METRICS,
    attention_progress_at,
    metric_at,
    ngram_metric,
)
from plateaulens.protocols import HookedModel, Metric
from plateaulens.tracing.traces import FINAL, trace

RESIDUAL = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post")


def measure(
    model: HookedModel,
    batch: Batch | Iterable[Batch],
    metrics: Sequence[Metric | str] | str,
    reduce: Literal["mean"] | None = "mean",
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
    batches = [batch] if isinstance(batch, Batch) else list(batch)
    functions = resolve(model, metrics, batches[0].task if batches else None)
    requires = required_by(functions)
    traces = (trace(model, b, requires) for b in batches)
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
    stated = [getattr(f, "requires", None) for f in functions]
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


def default_metrics(batch: Batch, model: HookedModel) -> list[Metric | str]:
    """Names of the metrics that `record` measures unless told otherwise: `Task.default_metrics` of the batch's task.

    The task's attention maps belong to the last layers of a deeper model, so that `attention_progress@LAYER` moves with
    them. Attention progress is left out for a task without an optimal map, and for a model with fewer layers than maps.

    Raises:
        ValueError: for prompts of language models, and for a task without default metrics.
    """
    if not hasattr(batch.task, "default_metrics"):
        whose = "these prompts have" if batch.task is None else f"{batch.task!r} has"
        raise ValueError(f"{whose} no default metrics; pass metrics=[...]")
    maps = batch.task.optimal_attention(batch[:1])
    first = n_layers(model) - len(maps) if maps is not None else -1
    names: list[Metric | str] = []
    for name in batch.task.default_metrics:
        metric, at, where = name.partition("@")
        if metric != "attention_progress":
            names.append(name)
        elif first >= 0:
            layer, colon, route = where.partition(":")
            names.append(f"{metric}@{int(layer) + first}{colon}{route}" if at else name)
    return names


def named_metric(metric: Metric | str, task: Any = None) -> Metric:
    """The metric of a name; functions are returned as they are.

    Args:
        metric: a name, or a function of a `Trace`.
        task: its own metrics (`Task.metrics`) come first.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(metric, str):
        return metric
    known = {**METRICS, **getattr(task, "metrics", {})}
    name, _, where = metric.partition("@")
    if not where:
        if name in NGRAM_METRICS:
            raise unknown("metric", metric, [f"{ngram}@2" for ngram in NGRAM_METRICS])
        if name not in known:
            raise unknown("metric", name, [*known, *(f"{state}@*" for state in STATE_METRICS)])
        return known[name]
    if name in STATE_METRICS:
        return metric_at(name, where)
    if name in NGRAM_METRICS and where.isascii() and where.isdigit():
        return ngram_metric(name, int(where))
    if name == "attention_progress":
        layer, _, route = where.partition(":")
        if not (layer.isascii() and layer.isdigit()):
            raise unknown("metric", metric, ["attention_progress@0", "attention_progress@0:alternative"])
        return attention_progress_at(int(layer), route or "optimal")
    if name in NGRAM_METRICS:
        raise unknown("metric", metric, [f"{ngram}@2" for ngram in NGRAM_METRICS])
    raise unknown("metric at a site", name, [*STATE_METRICS, *NGRAM_METRICS, "attention_progress"])


def resolve(model: HookedModel, metrics: Sequence[Metric | str] | str, task: Any = None) -> list[Metric]:
    """The functions that `metrics` stands for on this model, each once.

    `NAME@GLOB` is every site that the glob matches, `NAME@*` every residual site. A single name needs no list.

    Args:
        model: the model to be measured.
        metrics: names, or functions of a `Trace`.
        task: its own metrics (`Task.metrics`) come first.

    Raises:
        ValueError: for an unknown name, or two different functions of one name.
    """
    functions: dict[str, Metric] = {}
    built: set[str] = set()  # functions built for a name are built anew each time, and are the same
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        name, _, where = metric.partition("@") if isinstance(metric, str) else ("", "", "")
        if name in STATE_METRICS and any(c in where for c in "*?["):
            sites_there = residual_sites(model) if where == "*" else match_hooks(model, [where])
            chosen = [metric_at(name, site) for site in sites_there]
        else:
            chosen = [named_metric(metric, task)]
        for f in chosen:
            if functions.setdefault(f.__name__, f) is not f and not (isinstance(metric, str) and f.__name__ in built):
                raise ValueError(f"two metrics are named {f.__name__!r}; give the functions different names")
        if isinstance(metric, str):
            built.update(f.__name__ for f in chosen)
    return list(functions.values())


def residual_sites(model: Any) -> list[str]:
    """Where the residual stream is read: around the attention and after the MLP of each layer, and at the end.

    Models whose attention and MLP run in parallel (GPT-NeoX) have no place between the two.
    """
    names = [f"blocks.{layer}.{name}" for layer in range(n_layers(model)) for name in RESIDUAL] + [FINAL]
    known = hook_names(model)
    return [name for name in names if name in known]
