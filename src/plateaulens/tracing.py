"""`trace`: one pass of a model over a batch, read through hooks; and the named measurements.

    t = trace(model, held)                        # logits, activations, greedy answers
    measure(model, held, [loss, collapse])        # {"loss": ..., "collapse": ...}

A measurement is a function of a `Trace` that states what it reads, so that `measure` computes only
that. Measurements are teacher-forced, except accuracy, position_accuracy, repetition and entropy,
which read what the model generates greedily. Each gives one value a prompt; `measure` averages.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens import metrics
from plateaulens._lookup import look_up
from plateaulens._shapes import Batch
from plateaulens.hooked import PATTERNS, AttentionPattern, device_of, has_raw_hooks, matching, n_layers, sites

Measurement = Callable[["Trace"], Tensor]
FINAL = "unembed.hook_in"  # the residual stream after the final norm, on every kind of model


@dataclass(frozen=True, eq=False)
class Trace:
    """What one model did with one batch; computed when it was made, so later hooks change nothing.

    Attributes:
        batch: the batch; prompts without an answer carry the generated one.
        cache: activations by TransformerLens's hook names.
        n_layers: layers of the model.
        d_vocab: vocabulary of the model.
        has_truth: False for language-model prompts, which have no true answer.
    """

    batch: Batch
    cache: dict[str, Tensor]
    _outputs: Float[Tensor, "batch pos d_vocab"] | None
    _generated: Int[Tensor, "batch out"] | None
    n_layers: int
    d_vocab: int
    has_truth: bool = True

    @property
    def outputs(self) -> Float[Tensor, "batch pos d_vocab"]:
        """Teacher-forced logits."""
        return _present(self._outputs, "outputs")

    @property
    def generated(self) -> Int[Tensor, "batch out"]:
        """Greedy answers."""
        return _present(self._generated, "generated")

    @property
    def valid(self) -> Bool[Tensor, "batch out"]:
        """Which answer positions exist."""
        return self.batch.out >= 0

    def at_out(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch out d"]:
        """The rows of `x` that predict answer tokens."""
        index = self.batch.out.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, index)

    def pattern(self) -> AttentionPattern:
        """The attention maps of every traced layer; they remember their prompts."""
        names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in range(self.n_layers)}
        maps = {layer: self.cache[name] for layer, name in names.items() if name in self.cache}
        return AttentionPattern(maps, self.batch.tokens[:, : self.batch.prompt_len])

    def truth(self, what: str) -> Int[Tensor, "batch out"]:
        """The true answers; raises for prompts that have none."""
        if not self.has_truth:
            raise ValueError(f"{what} needs true answers, and these prompts have none; measure a task's batch")
        return self.batch.answers


@torch.no_grad()
def greedy_decode(model: Any, batch: Batch) -> Int[Tensor, "batch out"]:
    """The model's own answers, the likeliest token each time.

    Uses a KV cache on `Transformer`s; with hooks of the caller's attached, which may not know absolute
    positions, and on other models, every step is a full pass.
    """
    tokens = batch.tokens[:, : batch.prompt_len]
    start, count = tokens.shape[1], batch.out.shape[1]
    cache = model.kv_cache(len(tokens)) if hasattr(model, "kv_cache") and not has_raw_hooks(model) else None
    fresh = tokens
    for _ in range(count):
        logits = _logits(model(tokens) if cache is None else model(fresh, past_kv_cache=cache))
        fresh = logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, fresh], 1)
    return tokens[:, start:]


@torch.no_grad()
def trace(model: Any, batch: Batch, reads: Sequence[str] | None = None) -> Trace:
    """Run `model` on `batch` and keep what `reads` names.

    Args:
        model: any hooked model.
        batch: a task's batch, or `Batch.prompts(...)`, which the model then answers itself.
        reads: hook names or globs, "outputs", "generated"; everything when None.

    Raises:
        ValueError: for a hook name that the model does not have (with the nearest names).
        TypeError: when the model has no hooks.
    """
    batch = batch.to(device_of(model))
    wanted = ["outputs", "generated", *sites(model)] if reads is None else list(reads)
    names = matching(model, [name for name in wanted if name not in ("outputs", "generated")])
    generated = greedy_decode(model, batch) if "generated" in wanted or batch.n_new else None
    has_truth = not batch.n_new
    if not has_truth and generated is not None:
        batch = batch.answered(generated)
    cache: dict[str, Tensor] = {}
    outputs = None
    if names or "outputs" in wanted:
        hooks = [(name, _saver(cache, name)) for name in names]
        with model.hooks(fwd_hooks=hooks):
            outputs = _logits(model(batch.inputs))
    return Trace(batch, cache, outputs, generated, n_layers(model), int(model.cfg.d_vocab), has_truth)


def _present(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"this trace did not read {name!r}; add it to reads, or leave reads out")
    return value


def _logits(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _saver(cache: dict[str, Tensor], name: str) -> Callable[..., None]:
    def save(tensor: Tensor, hook: Any) -> None:
        cache[name] = tensor.detach()

    return save


def measure(
    model: Any,
    batch: Batch | Iterable[Batch],
    watch: Sequence[Measurement | str],
    reduce: str | None = "mean",
) -> dict[str, Tensor]:
    """Each measurement of `watch` by name: the mean over prompts, or with `reduce=None` one value a prompt.

    Several batches count by their number of prompts. A plain function of a Trace is as good as a named
    measurement; it gets everything.

    Raises:
        ValueError: for an unknown measurement, an unknown `reduce`, or no batch at all.
    """
    if reduce not in ("mean", None):
        raise ValueError(f"reduce must be 'mean' or None, got {reduce!r}")
    functions = [named(m) for m in watch]
    stated = [getattr(f, "reads", None) for f in functions]
    reads = None if None in stated else list(dict.fromkeys(name for names in stated for name in names or ()))
    traces = (trace(model, b, reads) for b in ([batch] if isinstance(batch, Batch) else batch))
    values: dict[str, list[Tensor]] = {}
    for t in traces:
        for function in functions:
            values.setdefault(function.__name__, []).append(function(t))
    if not values and functions:
        raise ValueError("nothing to measure: got no batch")
    return {name: _join(name, parts, reduce) for name, parts in values.items()}


def _join(name: str, parts: list[Tensor], reduce: str | None) -> Tensor:
    if parts[0].ndim == 0:
        if len(parts) > 1:
            raise ValueError(f"{name} is one number a batch and has no mean over {len(parts)} batches; measure one")
        return parts[0]
    joined = torch.cat(parts)
    if not reduce:
        return joined
    # Rows of a vector a prompt (position accuracies) have NaN where a shorter answer has nothing.
    return joined.float().nanmean(0) if joined.ndim > 1 else joined.float().mean(0)


def reads(*names: str) -> Callable[[Measurement], Measurement]:
    """State what a measurement needs of the trace: hook names or globs, "outputs", "generated"."""

    def mark(function: Measurement) -> Measurement:
        function.reads = names  # type: ignore[attr-defined]
        return function

    return mark


@reads("outputs")
def loss(t: Trace) -> Float[Tensor, " batch"]:
    """Mean next-token cross-entropy in nats over all scored targets, random prompt tokens included."""
    t.truth("loss")
    return metrics.cross_entropy(t.outputs, t.batch.targets, t.batch.scored)


@reads("outputs")
def answer_loss(t: Trace) -> Float[Tensor, " batch"]:
    """Mean cross-entropy in nats over the answer tokens only."""
    return metrics.cross_entropy(t.at_out(t.outputs), t.truth("answer_loss"), t.valid)


@reads("outputs")
def tf_accuracy(t: Trace) -> Float[Tensor, " batch"]:
    """Share of right answer tokens with teacher forcing."""
    return metrics.accuracy(t.at_out(t.outputs).argmax(-1), t.truth("tf_accuracy"), t.valid)


@reads("generated")
def accuracy(t: Trace) -> Float[Tensor, " batch"]:
    """Share of right answer tokens under greedy decoding (arXiv 2506.13688)."""
    return metrics.accuracy(t.generated, t.truth("accuracy"), t.valid)


@reads("generated")
def position_accuracy(t: Trace) -> Float[Tensor, "batch out"]:
    """Whether each answer token is right under greedy decoding; NaN where an example has fewer."""
    right = t.generated.eq(t.truth("position_accuracy")).float()
    return right.masked_fill(~t.valid, float("nan"))


@reads("generated")
def repetition(t: Trace) -> Float[Tensor, " batch"]:
    """Repetition frequency rho of the generated answer: share of equal neighbours (arXiv 2506.13688)."""
    return metrics.repetition_frequency(t.generated, t.valid)


@reads("generated")
def entropy(t: Trace) -> Float[Tensor, " batch"]:
    """Entropy in nats of the token values within the generated answer (arXiv 2506.13688)."""
    return metrics.sequence_entropy(t.generated, t.valid, t.d_vocab)


def collapse_at(site: str) -> Measurement:
    """Mean pairwise cosine of the output rows at `site`, as a measurement named `collapse@SITE`."""

    @reads(site)
    def collapsed(t: Trace) -> Float[Tensor, " batch"]:
        hidden = t.at_out(t.cache[site].flatten(2))
        if t.batch.task is not None:
            hidden = hidden[:, list(t.batch.task.collapse_positions)]
        return metrics.mean_pairwise_cosine(hidden)

    collapsed.__name__ = f"collapse@{site}"
    collapsed.__doc__ = f"Mean pairwise cosine of the output rows at {site}."
    return collapsed


collapse = collapse_at(FINAL)
collapse.__name__ = "collapse"
collapse.__doc__ = """Mean pairwise cosine of the output rows after the final norm (arXiv 2506.13688).

The task's partial-solution outputs are left out.
"""


@reads(PATTERNS)
def attention_progress(t: Trace) -> Float[Tensor, " batch"]:
    """Share of attention on the task's optimal map (APM), per sample (arXiv 2506.13688).

    A task with fewer maps than the model has layers is compared with the last layers, as the paper's
    code does. With several maps the value is their mean.
    """
    return torch.stack([metrics.attention_progress(a, omega) for a, omega in _attended(t)]).mean(0)


@reads(PATTERNS)
def attention_progress_global(t: Trace) -> Float[Tensor, ""]:
    """The same share with sums over the batch taken before dividing."""
    return torch.stack([metrics.attention_progress_global(a, omega) for a, omega in _attended(t)]).mean()


def _attended(t: Trace) -> list[tuple[Tensor, Tensor]]:
    maps = t.batch.task.optimal_attention(t.batch) if t.batch.task is not None else None
    if maps is None:
        raise ValueError(f"attention_progress needs a task with an optimal map; {t.batch.task!r} has none")
    pairs = zip(layers_of_maps(len(maps), t.n_layers), maps, strict=True)
    return [(t.cache[f"blocks.{layer}.attn.hook_pattern"], omega.to(t.batch.tokens.device)) for layer, omega in pairs]


def layers_of_maps(n_maps: int, layers: int) -> range:
    """The layers that a task's maps belong to: the last ones."""
    if n_maps > layers:
        raise ValueError(f"the task's solution takes {n_maps} layers and the model has {layers}; use a deeper model")
    return range(layers - n_maps, layers)


MEASUREMENTS: dict[str, Measurement] = {
    f.__name__: f
    for f in (
        loss,
        answer_loss,
        accuracy,
        tf_accuracy,
        position_accuracy,
        repetition,
        collapse,
        attention_progress,
        attention_progress_global,
        entropy,
    )
}
# What a run of a sequence task records unless told otherwise.
STANDARD = (loss, answer_loss, accuracy, position_accuracy, repetition, collapse, attention_progress, entropy)


def named(measurement: Measurement | str) -> Measurement:
    """A measurement by name (`collapse@SITE` for any site); functions pass through."""
    if not isinstance(measurement, str):
        return measurement
    prefix, _, site = measurement.partition("@")
    return collapse_at(site) if prefix == "collapse" and site else look_up("measurement", measurement, MEASUREMENTS)
