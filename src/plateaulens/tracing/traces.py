"""`trace`: one forward pass of a model over a batch, read through hooks.

t = trace(model, eval_batch)                        # logits, activations, greedy answers
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._signals import uninterruptible, without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import (
    AttentionPattern,
    device_of,
    hook_names,
    is_attention_map,
    match_hooks,
    n_layers,
    pattern_hook,
)
from plateaulens.protocols import HookedModel
from plateaulens.tracing.decoding import greedy_decode, logits_of
from plateaulens.tracing.next_token import token_entropy

if TYPE_CHECKING:
    from plateaulens.tracing.decoding import Generation

FORWARD_OUTPUTS = ("outputs", "answer_outputs", "answer_entropy")  # results of the teacher-forced pass
WITHOUT_HOOKS = (*FORWARD_OUTPUTS, "generated")  # what `requires` may name besides hooks
FINAL = "unembed.hook_in"  # the residual stream after the final norm, on every kind of model


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Activations, logits and generated answers of one model on one batch, computed when `trace` was called.

    Attributes:
        batch: The batch; prompts without an answer carry the generated one.
        cache: Activations by TransformerLens's hook names.
        n_layers: Number of layers of the model.
        d_vocab: Vocabulary size of the model.
        has_truth: False for language-model prompts, which have no true answer.
        near_ties: For language-model prompts, which generated tokens rounding could have changed.
    """

    batch: Batch
    cache: dict[str, Tensor]
    n_layers: int
    d_vocab: int
    has_truth: bool = True
    near_ties: Bool[Tensor, "batch out"] | None = None
    _values: dict[str, Tensor] = field(default_factory=dict)  # by the names in WITHOUT_HOOKS
    _answer_rows_only: bool = False  # the cache holds the positions that predict the answer, not all

    @property
    def outputs(self) -> Float[Tensor, "batch pos *d_vocab"]:
        """Teacher-forced logits, or the values of a scalar read-out [batch pos]."""
        return self._value("outputs")

    @property
    def answer_outputs(self) -> Float[Tensor, "batch out d_vocab"]:
        """Teacher-forced logits at the positions that predict answer tokens."""
        if "outputs" in self._values:
            return self.at_answers(self.outputs)
        return self._value("answer_outputs")

    @property
    def answer_entropy(self) -> Float[Tensor, "batch out"]:
        """Entropy in nats of the distributions that predict answer tokens."""
        if "answer_entropy" in self._values:
            return self._value("answer_entropy")
        return token_entropy(self.answer_outputs)

    @property
    def generated(self) -> Int[Tensor, "batch out"]:
        """Generated answers (greedily, for tasks); -1 where an example has fewer tokens."""
        return self._value("generated")

    @property
    def length(self) -> int:
        """Number of positions in the cached activations: the whole input, or those that predict a prompt's answer."""
        return self.batch.answer_positions.shape[1] if self._answer_rows_only else self.batch.inputs.shape[1]

    @property
    def valid(self) -> Bool[Tensor, "batch out"]:
        """Which answer positions exist."""
        return self.batch.answer_positions >= 0

    def at_answers(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch out d"]:
        """The rows of `x` at the positions that predict answer tokens."""
        if self._answer_rows_only:
            return x
        index = self.batch.answer_positions.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, index)

    def pattern(self) -> AttentionPattern:
        """Attention maps of every traced layer, with the prompts they belong to.

        Of prompts of unequal length, the tokens up to the end of the shortest are kept.
        """
        names = {layer: pattern_hook(layer) for layer in range(self.n_layers)}
        maps = {layer: self.cache[name] for layer, name in names.items() if name in self.cache}
        return AttentionPattern(maps, self.batch.shared_prompt)

    def truth(self, metric: str) -> Int[Tensor, "batch out"]:
        """The true answers; -1 where an example has fewer tokens.

        Args:
            metric: Name of the metric that needs them, for the error message.

        Raises:
            ValueError: If the prompts have no true answers.
        """
        if not self.has_truth:
            raise ValueError(f"{metric} needs true answers, and these prompts have none; measure a task's batch")
        return self.batch.answers

    def _value(self, name: str) -> Tensor:
        if name not in self._values:
            raise ValueError(f"this trace does not hold {name!r}; add it to `requires`, or leave `requires` out")
        return self._values[name]


@without_gradients
def trace(model: HookedModel, batch: Batch, requires: Sequence[str] | None = None) -> Trace:
    """Run `model` on `batch` and keep what `requires` names.

    For language-model prompts the model generates the answer first, and activations are kept at the positions that
    predict it, read while it is generated. Attention maps and "outputs" belong to whole sequences: with one of them in
    `requires`, activations of all positions are kept, and the prompts must have equal length.

    Args:
        model: Any hooked model.
        batch: A task's batch, or `Batch.prompts(...)`.
        requires: Hook names or globs, "outputs", "answer_outputs", "answer_entropy", "generated"; everything when None.

    Raises:
        ValueError: If the model has no hook of a given name (the message has the nearest names), or if "generated" is
            asked of a task that is answered in one pass.
        TypeError: If the model has no hooks.
    """
    batch = batch.to(device_of(model))
    requires, names = _required(model, batch, requires)
    cache: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    has_truth, near_ties, answer_rows_only = not batch.n_new, None, False
    if batch.n_new:
        answer_rows_only = "outputs" not in requires and not any(map(is_attention_map, names))
        generation = _generate(model, batch, *((names, requires) if answer_rows_only else ((), ())))
        batch, near_ties, cache = batch.answered(generation.tokens), generation.near_ties, generation.rows
        if not answer_rows_only:
            batch.prompt_len  # noqa: B018 (raises for prompts of unequal length)
        optional = {"answer_outputs": generation.logits, "answer_entropy": generation.entropy}
        values = {name: value for name, value in optional.items() if value is not None}
        values["generated"] = generation.tokens
    elif "generated" in requires:
        values["generated"] = greedy_decode(model, batch)
    if not answer_rows_only and (names or any(name in requires for name in FORWARD_OUTPUTS)):
        with uninterruptible(model.hooks(fwd_hooks=[(name, _save_to(cache, name)) for name in names])):
            values["outputs"] = logits_of(model(batch.inputs))
    return Trace(
        batch=batch,
        cache=cache,
        n_layers=n_layers(model),
        d_vocab=int(model.cfg.d_vocab),
        has_truth=has_truth,
        near_ties=near_ties,
        _values=values,
        _answer_rows_only=answer_rows_only,
    )


def _required(model: HookedModel, batch: Batch, requires: Sequence[str] | None) -> tuple[Sequence[str], list[str]]:
    """What is read, everything by default; and the names of its hooks."""
    if requires is None:
        requires = ["outputs", *(["generated"] if batch.is_decoded else []), *hook_names(model)]
    if "generated" in requires and not batch.is_decoded:
        raise ValueError(f"{batch.task!r} is answered in one pass and generates nothing; measure its losses")
    return requires, match_hooks(model, [name for name in requires if name not in WITHOUT_HOOKS])


def _generate(model: HookedModel, batch: Batch, names: Sequence[str], requires: Sequence[str]) -> "Generation":
    """The answers that a language model generates; imported when called so that traces of tasks do not load `lm`."""
    from plateaulens.lm.generation import generate

    return generate(model, batch, names, logits="answer_outputs" in requires, entropy="answer_entropy" in requires)


def _save_to(cache: dict[str, Tensor], name: str) -> Callable[..., None]:
    def save(tensor: Tensor, hook: Any) -> None:
        cache[name] = tensor.detach()

    return save
