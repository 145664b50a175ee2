"""`trace`: one pass of a model over a batch, read through hooks.

t = trace(model, eval_batch)                        # logits, activations, greedy answers
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from plateaulens.tracing.decoding import greedy_decode, logits_of
from plateaulens.tracing.next_token import token_entropy

OWN = ("outputs", "answer_outputs", "answer_entropy", "generated")  # what is read without a hook
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
        near_ties: of language-model prompts, which tokens rounding could have changed (see `generate`).
    """

    batch: Batch
    cache: dict[str, Tensor]
    _outputs: Float[Tensor, "batch pos *d_vocab"] | None
    _generated: Int[Tensor, "batch out"] | None
    n_layers: int
    d_vocab: int
    has_truth: bool = True
    _answer_outputs: Float[Tensor, "batch out d_vocab"] | None = None
    _answer_entropy: Float[Tensor, "batch out"] | None = None
    _rows_only: bool = False
    near_ties: Bool[Tensor, "batch out"] | None = None

    @property
    def outputs(self) -> Float[Tensor, "batch pos *d_vocab"]:
        """Teacher-forced logits, or the numbers of a scalar read-out."""
        return _present(self._outputs, "outputs")

    @property
    def answer_outputs(self) -> Float[Tensor, "batch out d_vocab"]:
        """Teacher-forced logits of the rows that predict answer tokens."""
        if self._answer_outputs is not None:
            return self._answer_outputs
        return self.at_answers(_present(self._outputs, "answer_outputs"))

    @property
    def answer_entropy(self) -> Float[Tensor, "batch out"]:
        """Entropy in nats of the distributions that predict answer tokens."""
        if self._answer_entropy is not None:
            return self._answer_entropy
        return token_entropy(self.answer_outputs)

    @property
    def generated(self) -> Int[Tensor, "batch out"]:
        """Greedy answers; -1 where an example has fewer."""
        return _present(self._generated, "generated")

    @property
    def length(self) -> int:
        """Positions that activations are kept of: all that the model ran on, or the rows that answer a prompt."""
        return self.batch.answer_positions.shape[1] if self._rows_only else self.batch.inputs.shape[1]

    @property
    def valid(self) -> Bool[Tensor, "batch out"]:
        """Which answer positions exist."""
        return self.batch.answer_positions >= 0

    def at_answers(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch out d"]:
        """The rows of `x` that predict answer tokens."""
        if self._rows_only:
            return x
        index = self.batch.answer_positions.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, index)

    def pattern(self) -> AttentionPattern:
        """The attention maps of every traced layer.

        They remember their prompts: of unequal ones what all have, up to the end of the shortest.
        """
        names = {layer: pattern_hook(layer) for layer in range(self.n_layers)}
        maps = {layer: self.cache[name] for layer, name in names.items() if name in self.cache}
        return AttentionPattern(maps, self.batch.shared_prompt)

    def truth(self, what: str) -> Int[Tensor, "batch out"]:
        """The true answers; raises for prompts that have none."""
        if not self.has_truth:
            raise ValueError(f"{what} needs true answers, and these prompts have none; measure a task's batch")
        return self.batch.answers


@without_gradients
def trace(model: Any, batch: Batch, requires: Sequence[str] | None = None) -> Trace:
    """Run `model` on `batch` and keep what `reads` names.

    Of language-model prompts, activations are kept at the rows that predict the answer, read while it is
    generated. Attention maps and "outputs" belong to whole sequences: with one of them in `reads`, whole
    activations are kept, and the prompts must be of one length.

    Args:
        model: any hooked model.
        batch: a task's batch, or `Batch.prompts(...)`, which the model then answers itself.
        requires: hook names or globs, "outputs", "answer_outputs", "answer_entropy", "generated"; everything when None.

    Raises:
        ValueError: for a hook name that the model does not have (with the nearest names).
        TypeError: when the model has no hooks.
    """
    batch = batch.to(device_of(model))
    decoded = ["generated"] if batch.is_decoded else []
    wanted = ["outputs", *decoded, *hook_names(model)] if requires is None else list(requires)
    if "generated" in wanted and not batch.is_decoded:
        raise ValueError(f"{batch.task!r} is answered in one pass and generates nothing; measure its losses")
    names = match_hooks(model, [name for name in wanted if name not in OWN])
    has_truth, near_ties = not batch.n_new, None
    if batch.n_new:
        from plateaulens.lm.generation import generate  # here: no trace of a task needs language models

        rows_only = "outputs" not in wanted and not any(map(is_attention_map, names))
        asked = {name: rows_only and name in wanted for name in OWN}
        own = generate(
            model, batch, names if rows_only else (), logits=asked["answer_outputs"], entropy=asked["answer_entropy"]
        )
        generated, near_ties, batch = own.tokens, own.near_ties, batch.answered(own.tokens)
        if rows_only:
            sizes = n_layers(model), int(model.cfg.d_vocab)
            return Trace(batch, own.rows, None, generated, *sizes, False, own.logits, own.entropy, True, near_ties)
        batch.prompt_len  # noqa: B018 (raises: prompts of unequal length)
    else:
        generated = greedy_decode(model, batch) if "generated" in wanted else None
    cache: dict[str, Tensor] = {}
    outputs = None
    if names or any(name in wanted for name in OWN[:3]):
        hooks = [(name, _saver(cache, name)) for name in names]
        with uninterruptible(model.hooks(fwd_hooks=hooks)):
            outputs = logits_of(model(batch.inputs))
    return Trace(
        batch, cache, outputs, generated, n_layers(model), int(model.cfg.d_vocab), has_truth, near_ties=near_ties
    )


def _present(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"this trace did not read {name!r}; add it to reads, or leave reads out")
    return value


def _saver(cache: dict[str, Tensor], name: str) -> Callable[..., None]:
    def save(tensor: Tensor, hook: Any) -> None:
        cache[name] = tensor.detach()

    return save
