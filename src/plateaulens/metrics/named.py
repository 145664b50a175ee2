"""The named metrics: functions of a `Trace` that state what they read of it.

All are teacher-forced, except those that read generated answers (greedy, or drawn for prompts with
`Decoding(sample=True)`): accuracy, exact_match, position_accuracy, part_accuracy, repetition, entropy, alpha_1,
alpha_1_halves, count_check, distinct@N and rep@N. Each returns one value or one row for each example;
`attention_progress_global` returns one value for the batch.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.hooks import PATTERN_HOOKS, pattern_hook
from plateaulens.metrics import functional
from plateaulens.protocols import Metric, requires
from plateaulens.tracing.traces import FINAL, Trace

# Loss and accuracy.


@requires("outputs")
def loss(t: Trace) -> Float[Tensor, " batch"]:
    """Mean next-token cross-entropy in nats over all targets of the loss mask, unpredictable prompt tokens included.

    A task with another loss has its own metric of this name (`Task.metrics`), which the name "loss" then stands for.
    """
    t.truth("loss")
    if t.outputs.ndim < 3:
        raise ValueError(
            f"pl.metrics.loss needs next-token logits, and {t.batch.task!r} has another loss; measure the name 'loss'"
        )
    return functional.cross_entropy(t.outputs, t.batch.targets, t.batch.loss_mask)


@requires("answer_outputs")
def answer_loss(t: Trace) -> Float[Tensor, " batch"]:
    """Mean cross-entropy in nats over the answer tokens only."""
    return functional.cross_entropy(t.answer_outputs, t.truth("answer_loss"), t.valid)


@requires("answer_outputs")
def tf_accuracy(t: Trace) -> Float[Tensor, " batch"]:
    """Share of correct answer tokens under teacher forcing."""
    return functional.accuracy(t.answer_outputs.argmax(-1), t.truth("tf_accuracy"), t.valid)


@requires("generated")
def accuracy(t: Trace) -> Float[Tensor, " batch"]:
    """Share of correct answer tokens under greedy decoding (arXiv 2506.13688)."""
    return functional.accuracy(t.generated, t.truth("accuracy"), t.valid)


@requires("generated")
def exact_match(t: Trace) -> Float[Tensor, " batch"]:
    """1 if the whole answer is correct under greedy decoding, else 0 (arXiv 2505.03997)."""
    return functional.exact_match(t.generated, t.truth("exact_match"), t.valid)


@requires("answer_outputs")
def tf_exact_match(t: Trace) -> Float[Tensor, " batch"]:
    """1 if the whole answer is correct under teacher forcing, else 0."""
    return functional.exact_match(t.answer_outputs.argmax(-1), t.truth("tf_exact_match"), t.valid)


@requires("generated")
def position_accuracy(t: Trace) -> Float[Tensor, "batch out"]:
    """1 for each answer token that is correct under greedy decoding, else 0; NaN where an example has fewer."""
    correct = t.generated.eq(t.truth("position_accuracy")).float()
    return correct.masked_fill(~t.valid, float("nan"))


@requires("generated")
def part_accuracy(t: Trace) -> Float[Tensor, "batch part"]:
    """Accuracy under greedy decoding within each of the task's `parts`."""
    columns = t.generated, t.truth("part_accuracy"), t.valid
    parts = [list(positions) for positions in t.batch.task.parts.values()]
    return torch.stack([functional.accuracy(*(column[:, part] for column in columns)) for part in parts], -1)


@requires("answer_outputs")
def sequence_log_prob(t: Trace) -> Float[Tensor, " batch"]:
    """Log probability of the whole true answer in nats, which shows progress while accuracy is still 0."""
    return functional.sequence_log_prob(t.answer_outputs, t.truth("sequence_log_prob"), t.valid)


@requires("answer_entropy")
def prediction_entropy(t: Trace) -> Float[Tensor, " batch"]:
    r"""Entropy of the next-token distribution, -\sum_v p_v ln p_v in nats, mean over the answer's positions."""
    return functional.mean_over_answer(t.answer_entropy, t.valid)


# The tokens of generated answers.


@requires("generated")
def repetition(t: Trace) -> Float[Tensor, " batch"]:
    """Repetition frequency rho of the generated answer: share of equal neighbors (arXiv 2506.13688)."""
    return functional.repetition_frequency(t.generated, t.valid)


@requires("generated")
def entropy(t: Trace) -> Float[Tensor, " batch"]:
    """Entropy in nats of the token values within the generated answer (arXiv 2506.13688; `sequence_entropy`)."""
    return functional.sequence_entropy(t.generated, t.valid)


@requires("generated")
def alpha_1(t: Trace) -> Float[Tensor, " batch"]:
    """Share of generated answer tokens equal to the first one (arXiv 2506.13688, Repeat tasks)."""
    return functional.first_share(t.generated, t.valid)


@requires("generated")
def alpha_1_halves(t: Trace) -> Float[Tensor, "batch half"]:
    """`alpha_1` within the first and within the second half of the answer (arXiv 2506.13688, Repeat_4)."""
    halves = zip(t.generated.tensor_split(2, 1), t.valid.tensor_split(2, 1), strict=True)
    return torch.stack([functional.first_share(tokens, valid) for tokens, valid in halves], -1)


@requires("generated")
def count_check(t: Trace) -> Float[Tensor, " batch"]:
    """Share of answer values that occur as often as in the true answer (arXiv 2506.13688, permutation)."""
    generated = t.generated.masked_fill(~t.valid, -1)
    return functional.count_check(generated, t.truth("count_check"), t.batch.task.answer_values)


NGRAM_METRICS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "distinct": functional.distinct_ngrams,
    "rep": functional.ngram_repetition,
}


def ngram_metric(metric: str, n: int) -> Metric:
    """The metric `METRIC@N` of the generated answer's n-grams: "distinct@2", "rep@4".

    Args:
        metric: "distinct" or "rep".
        n: Number of tokens of an n-gram.

    Raises:
        ValueError: If the metric is unknown or n is below 1.
    """
    function = look_up("metric of n-grams", metric, NGRAM_METRICS)
    if n < 1:
        raise ValueError(f"n-grams have at least 1 token, got {metric}@{n}")

    @requires("generated")
    def values(t: Trace) -> Float[Tensor, " batch"]:
        return function(t.generated, t.valid, n)

    values.__name__ = f"{metric}@{n}"
    values.__doc__ = f"{function.__name__} of the generated answer's {n}-grams."
    return values


# Hidden states.

STATE_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "collapse": functional.mean_pairwise_cosine,
    "norm": functional.mean_norm,
    "stable_rank": functional.stable_rank,
    "effective_rank": functional.effective_rank,
    "participation_ratio": functional.participation_ratio,
    "anisotropy": functional.anisotropy,
    "centered_anisotropy": functional.centered_anisotropy,
}


def metric_at(metric: str, site: str) -> Metric:
    """The metric `METRIC@SITE` of the hidden states that predict the answer, read at a hook.

    Pairs of states are formed within each of the task's `collapse_groups`, which leave the partial solution out, and
    the other metrics take the states of each group in the same way; the value is the mean over groups. In an answer
    that is shorter than others, the outputs that exist count, and the groups that have a value.

    Args:
        metric: One of `STATE_METRICS`.
        site: Name of any hook with positions on its second axis.

    Raises:
        ValueError: If the metric is unknown; when measured, if the hook has no positions.
    """
    function = look_up("metric of hidden states", metric, STATE_METRICS)

    @requires(site)
    def values(t: Trace) -> Float[Tensor, " batch"]:
        activations = t.cache[site]
        if activations.ndim < 3 or activations.shape[1] != t.length:
            shape = list(activations.shape)
            raise ValueError(f"{site} has shape {shape}, without positions on its second axis; measure another hook")
        hidden = t.at_answers(activations.flatten(2))
        if t.batch.task is None:
            return function(hidden, t.valid)
        groups = t.batch.task.collapse_groups  # of equal size, so that their mean is the mean over all pairs
        if not all(groups):
            return hidden.new_full((len(hidden),), float("nan"))
        by_group = torch.stack([function(hidden[:, list(g)], t.valid[:, list(g)]) for g in groups])
        return by_group.mean(0).where(t.valid.all(1), by_group.nanmean(0))

    values.__name__ = f"{metric}@{site}"
    values.__doc__ = f"{function.__name__} of the hidden states that predict the answer, at {site}."
    return values


collapse = metric_at("collapse", FINAL)
collapse.__name__ = "collapse"
collapse.__doc__ = """Mean pairwise cosine of the hidden states that predict the answer (arXiv 2506.13688).

Read after the final norm; the outputs of the task's partial solution are left out.
"""


@requires(FINAL)
def part_collapse(t: Trace) -> Float[Tensor, "batch part"]:
    """Mean cosine of the pairs whose earlier output is in each of the task's `parts` (arXiv 2506.13688, mixes)."""
    t.truth("part_collapse")
    hidden = t.at_answers(t.cache[FINAL])
    pairs = (t.valid[:, :, None] & t.valid[:, None, :]).triu(1)
    values = []
    for positions in t.batch.task.parts.values():
        earlier_in_part = torch.zeros_like(pairs)
        earlier_in_part[:, list(positions)] = True
        values.append(functional.mean_cosine_of(hidden, pairs & earlier_in_part))
    return torch.stack(values, -1)


# Attention.


@requires(PATTERN_HOOKS)
def attention_progress(t: Trace) -> Float[Tensor, " batch"]:
    """Attention progress measure (APM): share of attention on the task's optimal map (arXiv 2506.13688).

    A task with fewer maps than the model has layers is compared with the last layers, as in the paper's code. With
    several maps the value is their mean.
    """
    return _mean_over_layers(t, "hook_pattern", functional.attention_progress)


@requires(PATTERN_HOOKS)
def attention_progress_global(t: Trace) -> Float[Tensor, ""]:
    """Attention progress with sums over the whole batch taken before dividing."""
    return _mean_over_layers(t, "hook_pattern", functional.attention_progress_global)


@requires("blocks.*.attn.hook_attn_scores")
def softmax_progress(t: Trace) -> Float[Tensor, " batch"]:
    """Attention progress of the causal softmax of the scores: comparable between linear and softmax attention."""

    def progress(scores: Tensor, optimal: Tensor) -> Tensor:
        return functional.attention_progress(functional.softmax_pattern(scores), optimal)

    return _mean_over_layers(t, "hook_attn_scores", progress)


@requires(PATTERN_HOOKS)
def attention_sink(t: Trace) -> Float[Tensor, " batch"]:
    """Share of the answer's attention on the prompt's last two tokens, mean over layers (arXiv 2506.13688, code)."""
    out = t.batch.answer_positions
    positions, prompt_end = torch.arange(t.length, device=out.device), out[:, :1]
    queries = (out[..., None] == positions).any(1)
    keys = (prompt_end - 2 < positions) & (positions <= prompt_end)
    sinks = queries[:, :, None] & keys[:, None, :]
    patterns = [t.cache[pattern_hook(layer)] for layer in range(t.n_layers)]
    return torch.stack([functional.attention_progress(pattern, sinks) for pattern in patterns]).mean(0)


ROUTES = {"optimal": "optimal_attention", "alternative": "alternative_attention"}  # methods of a task


def attention_progress_at(layer: int, route: str = "optimal") -> Metric:
    """The metric `attention_progress@LAYER`: attention progress of one layer.

    Args:
        layer: The layer, counted from 0.
        route: "optimal", or "alternative" for the maps of the task's second solution
            (`attention_progress@LAYER:alternative`).

    Raises:
        ValueError: If the route is unknown; when measured, if the task has no map for the layer.
    """
    look_up("route", route, ROUTES)

    @requires(pattern_hook(layer))
    def values(t: Trace) -> Float[Tensor, " batch"]:
        maps = _task_maps(t, route)
        if layer not in maps:
            raise ValueError(f"{t.batch.task!r} has no {route} map for layer {layer}, only for {sorted(maps)}")
        return functional.attention_progress(t.cache[pattern_hook(layer)], maps[layer])

    values.__name__ = f"attention_progress@{layer}" + ("" if route == "optimal" else f":{route}")
    values.__doc__ = f"Attention progress of layer {layer} on the task's {route} map."
    return values


def _mean_over_layers(t: Trace, hook: str, progress: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean of `progress(activation, map)` over the layers for which the task has an optimal map."""
    values = [progress(t.cache[f"blocks.{layer}.attn.{hook}"], optimal) for layer, optimal in _task_maps(t).items()]
    return torch.stack(values).mean(0)


def _task_maps(t: Trace, route: str = "optimal") -> dict[int, Tensor]:
    """The task's attention maps by layer of the model."""
    maps = getattr(t.batch.task, ROUTES[route])(t.batch) if t.batch.task is not None else None
    if maps is None:
        raise ValueError(f"attention_progress needs a task with an {route} map; {t.batch.task!r} has none")
    if len(maps) > t.n_layers:
        raise ValueError(f"{t.batch.task!r} has {len(maps)} maps and the model {t.n_layers} layers; use a deeper model")
    pairs = enumerate(maps, t.n_layers - len(maps))
    return {layer: optimal.to(t.batch.tokens.device) for layer, optimal in pairs if optimal is not None}


METRICS: dict[str, Metric] = {
    f.__name__: f
    for f in (
        loss,
        answer_loss,
        accuracy,
        tf_accuracy,
        exact_match,
        tf_exact_match,
        position_accuracy,
        part_accuracy,
        repetition,
        entropy,
        prediction_entropy,
        sequence_log_prob,
        alpha_1,
        alpha_1_halves,
        count_check,
        collapse,
        part_collapse,
        attention_progress,
        attention_progress_global,
        softmax_progress,
        attention_sink,
    )
}
