"""`measure`: metrics by name; only what they require is computed.

    measure(model, eval_batch, ["loss", "collapse", "norm@*"])        # {"loss": ..., "collapse": ..., "norm@...": ...}

`NAME@SITE` is a metric of hidden states at any hook, `NAME@*` at every hook of the residual stream;
`attention_progress@LAYER` is the attention progress of one layer; `distinct@N` and `rep@N` are metrics of the generated
n-grams.
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

RESIDUAL_HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post")  # of each layer


def measure(
    model: HookedModel,
    batch: Batch | Iterable[Batch],
    metrics: Sequence[Metric | str] | str,
    reduce: Literal["mean"] | None = "mean",
) -> dict[str, Tensor]:
    """Compute metrics of a model on a batch.

    A prompt whose answer is too short to have a value (the repetition of a single token) is left out of the mean; any
    other NaN stays.

    Args:
        model: Any hooked model.
        batch: A batch, or several, which are weighted by their number of prompts.
        metrics: Names of metrics, and functions of a `Trace`. A function without `requires` gets a full trace.
        reduce: "mean" over prompts, or None for one value for each prompt.

    Returns:
        The value of each metric, by its name.

    Raises:
        ValueError: If a metric is unknown, `reduce` is neither, or there is no batch.
    """
    if reduce not in ("mean", None):
        raise ValueError(f"reduce must be 'mean' or None, got {reduce!r}")
    batches = [batch] if isinstance(batch, Batch) else list(batch)
    functions = resolve(model, metrics, batches[0].task if batches else None)
    if functions and not batches:
        raise ValueError("nothing to measure: got no batch")
    requires = required_by(functions)
    values: dict[str, list[Tensor]] = {function.__name__: [] for function in functions}
    is_short: list[Tensor] = []
    for b in batches:
        t = trace(model, b, requires)
        is_short.append(~t.valid.all(1))
        for function in functions:
            values[function.__name__].append(torch.as_tensor(function(t)))
    return {name: _join(name, parts, is_short, reduce) for name, parts in values.items()}


def required_by(functions: Sequence[Metric], more: Sequence[str] = ()) -> list[str] | None:
    """What the metrics require of a trace, and `more`; None (everything) if one of them does not state it."""
    stated = [getattr(f, "requires", None) for f in functions]
    return None if None in stated else list(dict.fromkeys([*more, *(n for names in stated for n in names or ())]))


def _join(name: str, parts: list[Tensor], is_short: list[Tensor], reduce: str | None) -> Tensor:
    if parts[0].ndim == 0:
        if len(parts) > 1:
            raise ValueError(f"{name} is one number a batch and has no mean over {len(parts)} batches; measure one")
        return parts[0]
    joined = torch.cat(parts)
    return mean_over_prompts(joined.float(), torch.cat(is_short)) if reduce else joined


def mean_over_prompts(values: Float[Tensor, "batch ..."], is_short: Bool[Tensor, " batch"]) -> Float[Tensor, "..."]:
    """Mean over prompts, without the NaN of prompts whose answer `is_short`.

    Rows of values (position accuracies) hold NaN where a shorter answer has no token, and are averaged without them.
    """
    if values.ndim > 1:
        return values.nanmean(0)
    return values[~(values.isnan() & is_short)].mean(0) if is_short.any() else values.mean(0)


def default_metrics(batch: Batch, model: HookedModel) -> list[Metric | str]:
    """Names of the metrics that `record` computes by default: `Task.default_metrics` of the batch's task.

    The task's attention maps belong to the last layers of the model, so the LAYER of `attention_progress@LAYER` is
    shifted for a deeper model. Attention progress is left out for a task without an optimal map, and for a model with
    fewer layers than maps.

    Raises:
        ValueError: If the batch holds prompts of language models, or its task has no default metrics.
    """
    if not hasattr(batch.task, "default_metrics"):
        subject = "these prompts have" if batch.task is None else f"{batch.task!r} has"
        raise ValueError(f"{subject} no default metrics; pass metrics=[...]")
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
        metric: A name, or a function of a `Trace`.
        task: A task whose own metrics (`Task.metrics`) come first.

    Raises:
        ValueError: If the name is unknown.
    """
    if not isinstance(metric, str):
        return metric
    name, _, where = metric.partition("@")
    if name in NGRAM_METRICS:
        if where.isascii() and where.isdigit():
            return ngram_metric(name, int(where))
        raise unknown("metric", metric, [f"{ngram}@2" for ngram in NGRAM_METRICS])
    if not where:
        known = {**METRICS, **getattr(task, "metrics", {})}
        if name not in known:
            raise unknown("metric", name, [*known, *(f"{state}@*" for state in STATE_METRICS)])
        return known[name]
    if name in STATE_METRICS:
        return metric_at(name, where)
    if name == "attention_progress":
        layer, _, route = where.partition(":")
        if not (layer.isascii() and layer.isdigit()):
            raise unknown("metric", metric, ["attention_progress@0", "attention_progress@0:alternative"])
        return attention_progress_at(int(layer), route or "optimal")
    raise unknown("metric at a site", name, [*STATE_METRICS, *NGRAM_METRICS, "attention_progress"])


def resolve(model: HookedModel, metrics: Sequence[Metric | str] | str, task: Any = None) -> list[Metric]:
    """The functions of metrics given by name, each once.

    `NAME@GLOB` stands for every hook that the glob matches, `NAME@*` for every hook of the residual stream.

    Args:
        model: The model that will be measured.
        metrics: A name, or names and functions of a `Trace`.
        task: A task whose own metrics (`Task.metrics`) come first.

    Raises:
        ValueError: If a name is unknown, or two different functions have one name.
    """
    functions: dict[str, Metric] = {}
    built: set[str] = set()  # a name builds a new function each time; two of one name are no conflict
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        by_name = isinstance(metric, str)
        for function in _functions(model, metric, task):
            name = function.__name__
            if functions.setdefault(name, function) is not function and not (by_name and name in built):
                raise ValueError(f"two metrics are named {name!r}; give the functions different names")
            if by_name:
                built.add(name)
    return list(functions.values())


def _functions(model: HookedModel, metric: Metric | str, task: Any) -> list[Metric]:
    if isinstance(metric, str):
        name, _, where = metric.partition("@")
        if name in STATE_METRICS and any(c in where for c in "*?["):
            hooks = residual_hooks(model) if where == "*" else match_hooks(model, [where])
            return [metric_at(name, hook) for hook in hooks]
    return [named_metric(metric, task)]


def residual_hooks(model: HookedModel) -> list[str]:
    """Hooks of the residual stream: before, between and after attention and MLP of each layer, and at the end.

    Models whose attention and MLP run in parallel (GPT-NeoX) have none between the two.
    """
    names = [f"blocks.{layer}.{name}" for layer in range(n_layers(model)) for name in RESIDUAL_HOOKS] + [FINAL]
    known = hook_names(model)
    return [name for name in names if name in known]
