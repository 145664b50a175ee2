"""Decoding: a model's own continuation of token sequences, with a key-value cache where it has one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._signals import uninterruptible, without_gradients
from plateaulens.batch import GREEDY, Batch, Decoding
from plateaulens.hooks import active_interventions, has_user_hooks, is_attention_map, is_native_bridge
from plateaulens.tracing.next_token import choose, token_entropy


@dataclass(frozen=True)
class Reading:
    """What is read while tokens are generated: hooks by name, all logits, the entropy of what these say."""

    sites: tuple[str, ...] = ()
    logits: bool = False
    entropy: bool = False


NOTHING = Reading()


@dataclass(frozen=True, eq=False)
class Generation:
    """What was generated, and what was read at the rows that predicted it.

    Attributes:
        tokens: the generated tokens.
        rows: activations by hook name, at the rows that predict the tokens.
        logits: of those rows, or None when they were not asked for.
        entropy: of the distributions that these are of, in nats, or None.
        near_ties: which tokens rounding could have changed, two of them being nearly as likely.
    """

    tokens: Int[Tensor, "batch out"]
    rows: dict[str, Float[Tensor, "batch out *rest"]]
    logits: Float[Tensor, "batch out d_vocab"] | None
    entropy: Float[Tensor, "batch out"] | None
    near_ties: Bool[Tensor, "batch out"]


@without_gradients
def greedy_decode(model: Any, batch: Batch) -> Int[Tensor, "batch out"]:
    """The model's own answers, the likeliest token each time; -1 where an example has fewer.

    Uses a KV cache where the model has one; with hooks of the caller's attached, which may not know absolute
    positions, and on other models, every step is a full pass. Prompts of unequal length go through together, a
    position at a time from where the shortest ends: an example takes the tokens of its own prompt while it is in it.
    Every token stays at its absolute position, and none is generated behind the last answer.
    """
    last = batch.answer_positions.max()
    ends = batch.answer_positions[:, 0].where(
        batch.answer_positions[:, 0] >= 0, last
    )  # an example without an answer is all prompt
    start, longest = int(ends.min()) + 1, int(ends.max()) + 1
    own = torch.arange(start, longest, device=ends.device) <= ends[:, None]
    given = batch.tokens[:, start:longest].masked_fill(~own, -1)
    said = decode(model, batch.tokens[:, :start], int(last) + 2 - start, remembers(model), given=given).tokens
    return said.gather(1, (batch.answer_positions + 1 - start).clamp(min=0)).masked_fill(batch.answer_positions < 0, -1)


def remembers(model: Any) -> bool:
    """Whether decoding may use a key-value cache: ours, or that of a Hugging Face model; never under raw hooks."""
    theirs = (
        hasattr(model, "original_model")
        and not is_native_bridge(model)
        and not getattr(model.cfg, "is_stateful", False)
    )
    causal = getattr(model.cfg, "attention_dir", "causal") == "causal"
    return (hasattr(model, "kv_cache") or theirs) and causal and not has_user_hooks(model)


def decode(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    count: int,
    cached: bool,
    mask: Int[Tensor, "batch pos"] | None = None,
    reading: Reading = NOTHING,
    decoding: Decoding = GREEDY,
    noise: Float[Tensor, "batch out d_vocab"] | None = None,
    given: Int[Tensor, "batch given"] | None = None,
) -> Generation:
    """`count` tokens after each row of `tokens`; those that are `given`, and not -1, are taken as they are."""
    call = _caller(model, len(tokens), mask, cached)
    start, fresh, kept = tokens.shape[1], tokens, None
    seen: dict[str, list[Tensor]] = {name: [] for name in reading.sites}
    near: list[Tensor] = []
    entropies: list[Tensor] = []
    with uninterruptible(
        model.hooks(fwd_hooks=[(name, _last_row(name, len(tokens), rows)) for name, rows in seen.items()])
    ):
        for i in range(count):
            scores = logits_of(call(tokens, fresh))[:, -1]
            if reading.entropy:
                entropies.append(token_entropy(scores))
            if reading.logits:
                kept = scores.new_empty(len(scores), count, scores.shape[1]) if kept is None else kept
                kept[:, i] = scores
            fresh, near_ties = choose(scores, decoding, None if noise is None else noise[:, i])
            near.append(near_ties)
            if given is not None and i < given.shape[1]:
                fresh = torch.where(given[:, i : i + 1] < 0, fresh, given[:, i : i + 1])
            tokens = torch.cat([tokens, fresh], 1)
    rows = {name: torch.stack(found, 1) for name, found in seen.items()}
    entropy = torch.stack(entropies, 1) if reading.entropy else None
    return Generation(tokens[:, start:].clone(), rows, kept, entropy, torch.stack(near, 1))


def _caller(model: Any, n: int, mask: Int[Tensor, "batch pos"] | None, cached: bool) -> Callable[[Tensor, Tensor], Any]:
    """How to ask for more: with the new tokens alone where the model remembers the others, else with all of them."""
    if hasattr(model, "kv_cache") and cached:
        own = model.kv_cache(n)
        return lambda tokens, fresh: model(fresh, past_kv_cache=own)
    options: dict[str, Any] = {}
    theirs = getattr(getattr(model, "original_model", None), "forward", None)
    if (
        theirs is not None
        and "logits_to_keep" in inspect.signature(theirs).parameters
        and not active_interventions(model)
    ):
        options["logits_to_keep"] = 1  # a read-out of every position costs more than a small model
    if not cached:
        return lambda tokens, fresh: model(tokens, **options)
    from transformers import DynamicCache

    cache = DynamicCache()

    def call(tokens: Tensor, fresh: Tensor) -> Any:
        if mask is None:
            return model(fresh, past_key_values=cache, **options)
        seen = F.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=1)
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
        return model(fresh, past_key_values=cache, attention_mask=seen, position_ids=positions, **options)

    return call


def logits_of(outputs: Any) -> Float[Tensor, "batch pos *d_vocab"]:
    """The logits of a call: a tensor, or the field of a Hugging Face output."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _last_row(name: str, n: int, rows: list[Tensor]) -> Callable[..., None]:
    def save(tensor: Tensor, hook: Any) -> None:
        if tensor.ndim < 3 or len(tensor) != n or is_attention_map(name):
            shape = list(tensor.shape)
            raise ValueError(f"{name} is {shape}, not a state a prompt and position; take another site")
        rows.append(tensor[:, -1].detach().clone())

    return save
