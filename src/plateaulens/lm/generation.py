"""`generate`: tokens that a model generates after each prompt, and activations at the positions that predict them.

Prompts of unequal length share a forward pass: shorter ones are padded on the left and masked. The result for a
prompt is independent of the batch it is in: where rounding could have changed a token (a near tie), the prompt is run
again from there by itself, without a key-value cache.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import active_interventions, has_user_hooks
from plateaulens.protocols import HookedModel
from plateaulens.tracing.decoding import Generation, Reading, decode, supports_cache
from plateaulens.tracing.next_token import TokenChoice, gumbel_noise

MAX_PROMPTS = 128  # prompts that share a pass
MAX_PADDING = 1024  # padded tokens in a batch: about what another pass costs (benchmarks/checkpoints.py)
MAX_TOKENS = 2**14  # tokens in a pass, padding included, to bound memory


@without_gradients
def generate(
    model: HookedModel, batch: Batch, sites: Sequence[str] = (), *, logits: bool = False, entropy: bool = False
) -> Generation:
    """Generate `batch.n_new` tokens after each prompt, and read `sites` at the positions that predict them.

    With interventions, which may be made for these very prompts, all prompts share each pass and none is run again.

    Args:
        model: Hooked model: a bridge, a `PlainModel` or a `Transformer`.
        batch: Prompts, as of `Batch.prompts`.
        sites: Names of hooks whose activations are kept.
        logits: Whether to keep the logits of each generated token.
        entropy: Whether to keep the entropy of each predicted distribution.

    Returns:
        The tokens [batch out] and what was read at the positions that predict them.

    Raises:
        ValueError: For prompts of unequal length under an intervention or a hook of the caller's, and for a
            site without positions on its second axis.
    """
    cached, reading = supports_cache(model), Reading(tuple(sites), logits, entropy)
    if active_interventions(model) or has_user_hooks(model):
        return _decode_batch(model, batch, cached, reading)
    lengths = (batch.answer_positions[:, 0] + 1).tolist()
    has_masks = cached and not hasattr(model, "kv_cache")  # Hugging Face's models, not ours
    # The mask of float64 is -inf to Hugging Face's softmax, which is in float32: padding would become NaN.
    can_pad = has_masks and next(model.parameters()).dtype != torch.float64
    max_padding = MAX_PADDING if can_pad else 0
    groups = batch_by_length(lengths, max_prompts=MAX_PROMPTS, max_padding=max_padding, max_tokens=MAX_TOKENS)
    if len(groups) == 1:
        generation = _decode_batch(model, batch, cached, reading)
    else:
        batches = [batch[torch.tensor(rows, device=batch.answer_positions.device)] for rows in groups]
        generation = _join(groups, [_decode_batch(model, part, cached, reading) for part in batches])
    for i in generation.near_ties.any(1).nonzero()[:, 0].tolist():
        _rerun_near_ties(model, batch[i : i + 1], generation, i)
    return generation


def batch_by_length(
    lengths: Sequence[int],
    *,
    max_prompts: float | int = math.inf,
    max_padding: float | int = math.inf,
    max_tokens: float | int = math.inf,
) -> list[list[int]]:
    """Indices of the prompts that share a pass: of about the same length, within each of the limits."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        group = [*groups[-1], i] if groups else []
        tokens = len(group) * lengths[i]
        padding = tokens - sum(lengths[j] for j in group)
        if not group or len(group) > max_prompts or tokens > max_tokens or padding > max_padding:
            groups.append([i])
        else:
            groups[-1].append(i)
    return groups


def _decode_batch(model: HookedModel, batch: Batch, cached: bool, reading: Reading) -> Generation:
    """Generate after all prompts of `batch` together; shorter ones are padded on the left behind a mask."""
    lengths = (batch.answer_positions[:, 0] + 1).tolist()
    longest, mask, tokens = max(lengths), None, batch.tokens[:, : max(lengths)]
    if min(lengths) < longest:
        if active_interventions(model) or has_user_hooks(model):
            batch.prompt_len  # noqa: B018 (raises: prompts of unequal length)
        tokens = torch.stack([F.pad(row[:n], (longest - n, 0)) for row, n in zip(tokens, lengths, strict=True)])
        mask = torch.stack([(torch.arange(longest) >= longest - n).long() for n in lengths]).to(tokens.device)
    noise = gumbel_noise(batch, lengths, int(model.cfg.d_vocab)) if batch.decoding.sample else None
    choice = TokenChoice(decoding=batch.decoding, noise=noise)
    count = batch.answer_positions.shape[1]
    return decode(model, tokens, count, use_cache=cached, mask=mask, reading=reading, choice=choice)


def _rerun_near_ties(model: HookedModel, prompt: Batch, generation: Generation, i: int) -> None:
    """Generate the near ties of prompt `i` again by full passes over it alone, and write them into `generation`.

    While the tokens come out the same, those after them hold; after one that differs, all are generated again.
    """
    length, count = prompt.prompt_len, generation.tokens.shape[1]
    noise = gumbel_noise(prompt, [length], int(model.cfg.d_vocab)) if prompt.decoding.sample else None
    reading = Reading(tuple(generation.rows), generation.logits is not None, generation.entropy is not None)

    def decode_from(k: int, n_new: int) -> Generation:
        tokens = torch.cat([prompt.tokens[:, :length], generation.tokens[i : i + 1, :k]], 1)
        choice = TokenChoice(decoding=prompt.decoding, noise=None if noise is None else noise[:, k : k + n_new])
        return decode(model, tokens, n_new, use_cache=False, reading=reading, choice=choice)

    for k in generation.near_ties[i].nonzero()[:, 0].tolist():
        again = decode_from(k, 1)
        if differs := bool(again.tokens[0, 0] != generation.tokens[i, k]):
            again = decode_from(k, count - k)
        for old, new in zip(_tensors(generation), _tensors(again), strict=True):
            old[i, k : k + new.shape[1]] = new[0]
        if differs:
            return


def _tensors(generation: Generation) -> list[Tensor]:
    optional = (generation.logits, generation.entropy)
    return [generation.tokens, *generation.rows.values(), *(tensor for tensor in optional if tensor is not None)]


def _join(groups: list[list[int]], parts: list[Generation]) -> Generation:
    """The prompts of all groups in their original order."""
    order = torch.tensor([i for group in groups for i in group]).argsort()

    def join(field: Callable[[Generation], Tensor]) -> Tensor:
        joined = torch.cat([field(part) for part in parts])
        return joined[order.to(joined.device)]

    def join_optional(field: str) -> Tensor | None:
        return None if getattr(parts[0], field) is None else join(lambda part: getattr(part, field))

    return Generation(
        tokens=join(lambda part: part.tokens),
        rows={name: join(partial(_rows_at, name)) for name in parts[0].rows},
        logits=join_optional("logits"),
        entropy=join_optional("entropy"),
        near_ties=join(lambda part: part.near_ties),
    )


def _rows_at(name: str, part: Generation) -> Tensor:
    return part.rows[name]
