"""The named measurements: functions of a `Trace` that state what they read.

Teacher-forced, except those that read what the model generates (greedily, unless prompts say `Decoding(sample=True)`):
accuracy, exact_match, position_accuracy, part_accuracy, repetition, entropy, alpha_1, alpha_1_halves, count_check and
those of n-grams. Each gives one value or one row a prompt, `attention_progress_global` one value a batch.
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


@requires("outputs")
def loss(t: Trace) -> Float[Tensor, " batch"]:
    """Mean next-token cross-entropy in nats over all targets of the loss mask, random prompt tokens included.

    A task whose loss is another one has its own metric of this name (`Task.metrics`); ask for "loss" by name.
    """
    t.truth("loss")
    if t.outputs.ndim < 3:
        raise ValueError(
            f"loss is of next-token logits, and {t.batch.task!r} has a loss of its own; measure 'loss' by name"
        )
    return functional.cross_entropy(t.outputs, t.batch.targets, t.batch.loss_mask)


@requires("answer_outputs")
def answer_loss(t: Trace) -> Float[Tensor, " batch"]:
    """Mean cross-entropy in nats over the answer tokens only."""
    return functional.cross_entropy(t.answer_outputs, t.truth("answer_loss"), t.valid)


@requires("answer_outputs")
def tf_accuracy(t: Trace) -> Float[Tensor, " batch"]:
    """Share of right answer tokens with teacher forcing."""
    return functional.accuracy(t.answer_outputs.argmax(-1), t.truth("tf_accuracy"), t.valid)


@requires("generated")
def accuracy(t: Trace) -> Float[Tensor, " batch"]:
    """Share of right answer tokens under greedy decoding (arXiv 2506.13688)."""
    return functional.accuracy(t.generated, t.truth("accuracy"), t.valid)


@requires("generated")
def exact_match(t: Trace) -> Float[Tensor, " batch"]:
    """Whether the whole answer is right under greedy decoding (arXiv 2505.03997)."""
    return functional.exact_match(t.generated, t.truth("exact_match"), t.valid)


@requires("answer_outputs")
def tf_exact_match(t: Trace) -> Float[Tensor, " batch"]:
    """Whether the whole answer is right with teacher forcing."""
    return functional.exact_match(t.answer_outputs.argmax(-1), t.truth("tf_exact_match"), t.valid)


@requires("generated")
def position_accuracy(t: Trace) -> Float[Tensor, "batch out"]:
    """Whether each answer token is right under greedy decoding; NaN where an example has fewer."""
    right = t.generated.eq(t.truth("position_accuracy")).float()
    return right.masked_fill(~t.valid, float("nan"))


@requires("generated")
def repetition(t: Trace) -> Float[Tensor, " batch"]:
    """Repetition frequency rho of the generated answer: share of equal neighbors (arXiv 2506.13688)."""
    return functional.repetition_frequency(t.generated, t.valid)


@requires("generated")
def entropy(t: Trace) -> Float[Tensor, " batch"]:
    """Entropy in nats of the token values within the generated answer (arXiv 2506.13688)."""
    return functional.sequence_entropy(t.generated, t.valid)


@requires("answer_entropy")
def prediction_entropy(t: Trace) -> Float[Tensor, " batch"]:
    """Entropy in nats of the next-token distribution, mean over the rows that predict the answer."""
    return functional.mean_over_answer(t.answer_entropy, t.valid)


def ngram_metric(metric: str, n: int) -> Metric:
    """`metric` of the generated answer's n-grams, as a measurement named `METRIC@N`: "distinct@2", "rep@4".

    Raises:
        ValueError: for an unknown metric, or n below 1.
    """
    function = look_up("metric of n-grams", metric, NGRAM_METRICS)
    if n < 1:
        raise ValueError(f"n-grams have at least 1 token, got {metric}@{n}")

    @requires("generated")
    def measured(t: Trace) -> Float[Tensor, " batch"]:
        return function(t.generated, t.valid, n)

    measured.__name__ = f"{metric}@{n}"
    measured.__doc__ = f"{function.__name__} of the generated answer's {n}-grams."
    return measured


NGRAM_METRICS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "distinct": functional.distinct_ngrams,
    "rep": functional.ngram_repetition,
}


@requires("answer_outputs")
def sequence_log_prob(t: Trace) -> Float[Tensor, " batch"]:
    """Log p(the whole true answer), in nats: progress far below one right answer in a hundred is visible."""
    return functional.sequence_log_prob(t.answer_outputs, t.truth("sequence_log_prob"), t.valid)


@requires("generated")
def alpha_1(t: Trace) -> Float[Tensor, " batch"]:
    """Share of generated answers equal to the first one (arXiv 2506.13688, Repeat tasks)."""
    return functional.first_share(t.generated, t.valid)


@requires("generated")
def alpha_1_halves(t: Trace) -> Float[Tensor, "batch half"]:
    """The same within the first and within the second half of the answer (arXiv 2506.13688, Repeat_4)."""
    halves = zip(t.generated.tensor_split(2, 1), t.valid.tensor_split(2, 1), strict=True)
    return torch.stack([functional.first_share(tokens, valid) for tokens, valid in halves], -1)


@requires("generated")
def count_check(t: Trace) -> Float[Tensor, " batch"]:
    """Share of answer values that occur as often as in the true answer (arXiv 2506.13688, permutation)."""
    generated = t.generated.masked_fill(~t.valid, -1)
    return functional.count_check(generated, t.truth("count_check"), t.batch.task.answer_values)


@requires("generated")
def part_accuracy(t: Trace) -> Float[Tensor, "batch part"]:
    """Accuracy of each of the task's `parts`."""
    columns = t.generated, t.truth("part_accuracy"), t.valid
    parts = [list(positions) for positions in t.batch.task.parts.values()]
    return torch.stack([functional.accuracy(*(column[:, part] for column in columns)) for part in parts], -1)


@requires(FINAL)
def part_collapse(t: Trace) -> Float[Tensor, "batch part"]:
    """Mean cosine of the pairs whose earlier output lies in each of the task's `parts` (arXiv 2506.13688, mixes)."""
    t.truth("part_collapse")
    hidden = t.at_answers(t.cache[FINAL])
    pairs = (t.valid[:, :, None] & t.valid[:, None, :]).triu(1)
    values = []
    for positions in t.batch.task.parts.values():
        earlier = torch.zeros_like(pairs)
        earlier[:, list(positions)] = True
        values.append(functional.mean_cosine_of(hidden, pairs & earlier))
    return torch.stack(values, -1)


# At sites.

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
    """`metric` of the output rows at a hook, as a measurement named `METRIC@SITE`.

    Pairs are formed within the task's `collapse_groups`, which leave the partial solution out; the value
    is the mean over pairs. The other metrics take the outputs of each group in the same way. Of a shorter answer
    only the outputs it has count, and of several groups those that have a value. A site is any hook with positions
    on its second axis.

    Raises:
        ValueError: for an unknown metric.
    """
    function = look_up("metric of hidden states", metric, STATE_METRICS)

    @requires(site)
    def measured(t: Trace) -> Float[Tensor, " batch"]:
        whole = t.cache[site]
        if whole.ndim < 3 or whole.shape[1] != t.length:
            raise ValueError(f"{site} is {list(whole.shape)}, without positions on its second axis; take another site")
        hidden = t.at_answers(whole.flatten(2))
        if t.batch.task is None:
            return function(hidden, t.valid)
        groups = t.batch.task.collapse_groups  # equally large, so that their mean is the mean over pairs
        if not all(groups):
            return hidden.new_full((len(hidden),), float("nan"))
        values = torch.stack([function(hidden[:, list(g)], t.valid[:, list(g)]) for g in groups])
        return values.mean(0).where(t.valid.all(1), values.nanmean(0))

    measured.__name__ = f"{metric}@{site}"
    measured.__doc__ = f"{function.__name__} of the output rows at {site}."
    return measured


collapse = metric_at("collapse", FINAL)
collapse.__name__ = "collapse"
collapse.__doc__ = """Mean pairwise cosine of the output rows after the final norm (arXiv 2506.13688).

The task's partial-solution outputs are left out.
"""


# Attention.


@requires(PATTERN_HOOKS)
def attention_progress(t: Trace) -> Float[Tensor, " batch"]:
    """Share of attention on the task's optimal map (APM), per sample (arXiv 2506.13688).

    A task with fewer maps than the model has layers is compared with the last layers, as the paper's
    code does. With several maps the value is their mean.
    """
    patterns = _by_layer(t, "hook_pattern")
    return torch.stack([functional.attention_progress(patterns[i], omega) for i, omega in _attended(t).items()]).mean(0)


@requires(PATTERN_HOOKS)
def attention_progress_global(t: Trace) -> Float[Tensor, ""]:
    """The same share with sums over the batch taken before dividing."""
    patterns, maps = _by_layer(t, "hook_pattern"), _attended(t)
    return torch.stack([functional.attention_progress_global(patterns[i], omega) for i, omega in maps.items()]).mean()


@requires("blocks.*.attn.hook_attn_scores")
def softmax_progress(t: Trace) -> Float[Tensor, " batch"]:
    """Attention progress of the causal softmax of the scores: comparable between linear and softmax attention."""
    patterns = {layer: functional.softmax_pattern(scores) for layer, scores in _by_layer(t, "hook_attn_scores").items()}
    return torch.stack([functional.attention_progress(patterns[i], omega) for i, omega in _attended(t).items()]).mean(0)


@requires(PATTERN_HOOKS)
def attention_sink(t: Trace) -> Float[Tensor, " batch"]:
    """Share of the answers' attention on the prompt's last two tokens, mean over layers (arXiv 2506.13688, code)."""
    patterns, out = _by_layer(t, "hook_pattern").values(), t.batch.answer_positions
    here, last = torch.arange(t.length, device=out.device), out[:, :1]
    rows, keys = (out[..., None] == here).any(1), (last - 2 < here) & (here <= last)
    sinks = rows[:, :, None] & keys[:, None, :]
    return torch.stack([functional.attention_progress(pattern, sinks) for pattern in patterns]).mean(0)


def attention_progress_at(layer: int, route: str = "optimal") -> Metric:
    """Attention progress of one layer, as `attention_progress@LAYER`; `@LAYER:alternative` takes the second route.

    Raises:
        ValueError: for an unknown route; when measured, for a layer of which the task knows no map.
    """
    look_up("route", route, ROUTES)

    @requires(pattern_hook(layer))
    def measured(t: Trace) -> Float[Tensor, " batch"]:
        maps = _attended(t, route)
        if layer not in maps:
            raise ValueError(f"{t.batch.task!r} has no {route} map for layer {layer}, only for {sorted(maps)}")
        return functional.attention_progress(t.cache[pattern_hook(layer)], maps[layer])

    measured.__name__ = f"attention_progress@{layer}" + ("" if route == "optimal" else f":{route}")
    return measured


ROUTES = {"optimal": "optimal_attention", "alternative": "alternative_attention"}


def _by_layer(t: Trace, hook: str) -> dict[int, Tensor]:
    return {layer: t.cache[f"blocks.{layer}.attn.{hook}"] for layer in range(t.n_layers)}


def _attended(t: Trace, route: str = "optimal") -> dict[int, Tensor]:
    """Layer -> the task's map there."""
    maps = getattr(t.batch.task, ROUTES[route])(t.batch) if t.batch.task is not None else None
    if maps is None:
        raise ValueError(f"attention_progress needs a task with an {route} map; {t.batch.task!r} has none")
    if len(maps) > t.n_layers:
        raise ValueError(f"{t.batch.task!r} has {len(maps)} maps and the model {t.n_layers} layers; use a deeper model")
    pairs = enumerate(maps, t.n_layers - len(maps))
    return {layer: omega.to(t.batch.tokens.device) for layer, omega in pairs if omega is not None}


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
