"""Decoding: a model's continuation of token sequences, with a key-value cache where the model has one.

answers = greedy_decode(model, eval_batch)           # [batch out]
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._signals import uninterruptible, without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import active_interventions, has_user_hooks, is_attention_map, is_native_bridge
from plateaulens.protocols import HookedModel
from plateaulens.tracing.next_token import GREEDY_CHOICE, TokenChoice, choose, token_entropy


@dataclass(frozen=True)
class Reading:
    """What is read while tokens are generated.

    Attributes:
        sites: Names of the hooks whose activations are kept.
        logits: Whether the logits are kept.
        entropy: Whether the entropy of the predicted distributions is kept.
    """

    sites: tuple[str, ...] = ()
    logits: bool = False
    entropy: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Generation:
    """Generated tokens, and what was read at the positions that predicted them.

    Attributes:
        tokens: The generated tokens.
        rows: Activations by hook name, at the positions that predict the tokens.
        logits: Logits of those positions, or None when they were not asked for.
        entropy: Entropy of the distributions of these logits, in nats, or None when it was not asked for.
        near_ties: Which tokens rounding could have changed: another token was nearly as likely.
    """

    tokens: Int[Tensor, "batch out"]
    rows: dict[str, Float[Tensor, "batch out *rest"]]
    logits: Float[Tensor, "batch out d_vocab"] | None
    entropy: Float[Tensor, "batch out"] | None
    near_ties: Bool[Tensor, "batch out"]


@without_gradients
def greedy_decode(model: HookedModel, batch: Batch) -> Int[Tensor, "batch out"]:
    """Answers of the model, the likeliest token each time; -1 where an example has fewer.

    Uses a key-value cache where the model has one; other models, and models with user hooks (which may not know
    absolute positions), make a full pass for each token. Prompts of unequal length are decoded together, one position
    at a time from the end of the shortest prompt: an example takes the tokens of its own prompt as long as there are
    any. Every token stays at its absolute position, and nothing is generated after the last answer.

    Args:
        model: Any hooked model.
        batch: Prompts with the positions of their answers.
    """
    positions = batch.answer_positions
    last_position = positions.max()
    prompt_ends = positions[:, 0].where(positions[:, 0] >= 0, last_position)  # without an answer, all is prompt
    start, longest = int(prompt_ends.min()) + 1, int(prompt_ends.max()) + 1
    in_prompt = torch.arange(start, longest, device=positions.device) <= prompt_ends[:, None]
    prompt_rest = batch.tokens[:, start:longest].masked_fill(~in_prompt, -1)
    generated = decode(
        model,
        batch.tokens[:, :start],
        int(last_position) + 2 - start,
        use_cache=supports_cache(model),
        choice=TokenChoice(given=prompt_rest),
    ).tokens
    return generated.gather(1, (positions + 1 - start).clamp(min=0)).masked_fill(positions < 0, -1)


def supports_cache(model: HookedModel) -> bool:
    """Whether decoding may use a key-value cache, this package's or Hugging Face's; never with user hooks attached."""
    is_hugging_face = hasattr(model, "original_model") and not is_native_bridge(model)
    stateful = getattr(model.cfg, "is_stateful", False)
    causal = getattr(model.cfg, "attention_dir", "causal") == "causal"
    has_cache = hasattr(model, "kv_cache") or (is_hugging_face and not stateful)
    return has_cache and causal and not has_user_hooks(model)


def decode(
    model: Any,  # a hooked model, or without `reading.sites` any module that returns logits
    tokens: Int[Tensor, "batch pos"],
    count: int,
    *,
    use_cache: bool,
    mask: Int[Tensor, "batch pos"] | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    choice: TokenChoice = GREEDY_CHOICE,
) -> Generation:
    """Generate `count` tokens after each row of `tokens`.

    Args:
        model: The model that is decoded.
        tokens: Prompts of equal length, or padded on the left.
        count: Number of tokens to generate for each row.
        use_cache: Pass new tokens alone, with a key-value cache; else every pass takes whole sequences.
        mask: 0 where `tokens` is padding (Hugging Face models with a cache only).
        reading: What is kept besides the tokens.
        choice: How the next token is chosen.
    """
    forward = _forward(model, len(tokens), mask, use_cache)
    start, new_tokens, logits = tokens.shape[1], tokens, None
    rows: dict[str, list[Tensor]] = {name: [] for name in reading.sites}
    near_ties, entropies = [], []
    hooks = [(name, _append_last_row(name, len(tokens), values)) for name, values in rows.items()]
    with uninterruptible(model.hooks(fwd_hooks=hooks) if hooks else nullcontext()):
        for i in range(count):
            scores = logits_of(forward(tokens, new_tokens))[:, -1]
            if reading.entropy:
                entropies.append(token_entropy(scores))
            if reading.logits:
                logits = scores.new_empty(len(scores), count, scores.shape[1]) if logits is None else logits
                logits[:, i] = scores
            new_tokens, near_tie = choose(scores, choice, i)
            near_ties.append(near_tie)
            tokens = torch.cat([tokens, new_tokens], 1)
    return Generation(
        tokens=tokens[:, start:].clone(),
        rows={name: torch.stack(values, 1) for name, values in rows.items()},
        logits=logits,
        entropy=torch.stack(entropies, 1) if reading.entropy else None,
        near_ties=torch.stack(near_ties, 1),
    )


def _forward(
    model: Any, n_rows: int, mask: Int[Tensor, "batch pos"] | None, use_cache: bool
) -> Callable[[Tensor, Tensor], Any]:
    """A function of all tokens and of the new ones that returns the model's output; with a cache, of the new alone."""
    if use_cache and hasattr(model, "kv_cache"):
        kv_cache = model.kv_cache(n_rows)
        return lambda tokens, new_tokens: model(new_tokens, past_kv_cache=kv_cache)
    options: dict[str, Any] = {}
    inner = getattr(model, "original_model", None)
    parameters = inspect.signature(inner.forward).parameters if inner is not None else {}
    if "logits_to_keep" in parameters and not active_interventions(model):
        options["logits_to_keep"] = 1  # logits of every position cost more than the rest of a small model
    if not use_cache:
        return lambda tokens, new_tokens: model(tokens, **options)
    from transformers import DynamicCache

    cache = DynamicCache()

    def forward(tokens: Tensor, new_tokens: Tensor) -> Any:
        if mask is None:
            return model(new_tokens, past_key_values=cache, **options)
        visible = F.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=1)
        positions = (visible.cumsum(1) - 1).clamp(min=0)[:, -new_tokens.shape[1] :]
        return model(new_tokens, past_key_values=cache, attention_mask=visible, position_ids=positions, **options)

    return forward


def logits_of(outputs: Any) -> Float[Tensor, "batch pos *d_vocab"]:
    """The logits of a model's output: a tensor, or a Hugging Face output with a field `logits`."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _append_last_row(name: str, n_rows: int, values: list[Tensor]) -> Callable[..., None]:
    def save(tensor: Tensor, hook: Any) -> None:
        if tensor.ndim < 3 or len(tensor) != n_rows or is_attention_map(name):
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, not one state for each prompt and position; read another hook"
            )
        values.append(tensor[:, -1].detach().clone())

    return save
