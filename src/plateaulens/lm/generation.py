"""`generate`: what a model says to each prompt, and its activations at the rows that said it, in one go.

Prompts of unequal length share a pass: shorter ones are padded on the left, behind a mask. What comes out
for a prompt does not depend on its company; where rounding could have chosen another token, the prompt
is run again from there by itself, without a cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import active_interventions, has_user_hooks
from plateaulens.lm.unhooked import PADDING, TOKENS, batch_by_length, unhooked
from plateaulens.tracing.decoding import Generation, Reading, decode, supports_cache
from plateaulens.tracing.next_token import TokenChoice, gumbel_noise

ROWS = 128  # prompts a pass


@without_gradients
def generate(
    model: Any, batch: Batch, sites: Sequence[str] = (), logits: bool = False, entropy: bool = False
) -> Generation:
    """Let `model` answer the prompts of `batch`, and read `sites` at the rows that predict the answers.

    Under interventions, which may be made for these very prompts, all go through together, of equal length,
    and none is run again.

    Raises:
        ValueError: for prompts of unequal length under an intervention or a hook of the caller's, and for a
            site without positions on its second axis.
    """
    cached, reading = supports_cache(model), Reading(tuple(sites), logits, entropy)
    if active_interventions(model) or has_user_hooks(model):
        return _decode_batch(model, batch, cached, reading)
    lengths, plain = (batch.answer_positions[:, 0] + 1).tolist(), unhooked(model, sites) if cached else None
    if next(model.parameters()).dtype == torch.float64:  # whose mask is -inf to Hugging Face's softmax in float32
        model, passes = plain or model, batch_by_length(lengths, rows=ROWS, padding=0)
    elif plain is not None:
        model, passes = plain, batch_by_length(lengths, rows=ROWS)
    elif cached and not hasattr(model, "kv_cache"):  # the shorter can be masked
        passes = batch_by_length(lengths, rows=ROWS, padding=PADDING, tokens=TOKENS)
    else:
        passes = batch_by_length(lengths, rows=ROWS, padding=0)
    if len(passes) == 1:
        found = _decode_batch(model, batch, cached, reading)
    else:
        parts = [batch[torch.tensor(rows, device=batch.answer_positions.device)] for rows in passes]
        found = _join(passes, [_decode_batch(model, part, cached, reading) for part in parts])
    for i in found.near_ties.any(1).nonzero()[:, 0].tolist():
        _run_again(model, batch[i : i + 1], found, i)
    return found


def _decode_batch(model: Any, batch: Batch, cached: bool, reading: Reading) -> Generation:
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


def _run_again(model: Any, prompt: Batch, found: Generation, i: int) -> None:
    """Say the unsure tokens of prompt `i` again, by itself and with everything in every pass.

    As long as they come out the same, so does what follows; after one that does not, all is said again.
    """
    length, total = prompt.prompt_len, found.tokens.shape[1]
    noise = gumbel_noise(prompt, [length], int(model.cfg.d_vocab)) if prompt.decoding.sample else None
    reading = Reading(tuple(found.rows), found.logits is not None, found.entropy is not None)

    def decode_from(k: int, count: int) -> Generation:
        tokens = torch.cat([prompt.tokens[:, :length], found.tokens[i : i + 1, :k]], 1)
        choice = TokenChoice(decoding=prompt.decoding, noise=None if noise is None else noise[:, k : k + count])
        return decode(model, tokens, count, use_cache=False, reading=reading, choice=choice)

    for k in found.near_ties[i].nonzero()[:, 0].tolist():
        again = decode_from(k, 1)
        if other := bool(again.tokens[0, 0] != found.tokens[i, k]):
            again = decode_from(k, total - k)
        for old, new in zip(_tensors(found), _tensors(again), strict=True):
            old[i, k : k + new.shape[1]] = new[0]
        if other:
            return


def _tensors(g: Generation) -> list[Tensor]:
    return [g.tokens, *g.rows.values(), *(t for t in (g.logits, g.entropy) if t is not None)]


def _join(passes: list[list[int]], parts: list[Generation]) -> Generation:
    """The prompts of all passes in their own order."""

    def join(of: Callable[[Generation], Any]) -> Tensor:
        pieces = [of(part) for part in parts]
        joined = pieces[0].new_empty(sum(map(len, pieces)), *pieces[0].shape[1:])
        for rows, piece in zip(passes, pieces, strict=True):
            joined[rows] = piece
        return joined

    rows = {name: join(lambda g, name=name: g.rows[name]) for name in parts[0].rows}
    logits = None if parts[0].logits is None else join(lambda g: g.logits)
    entropy = None if parts[0].entropy is None else join(lambda g: g.entropy)
    tokens, near_ties = join(lambda g: g.tokens), join(lambda g: g.near_ties)
    return Generation(tokens=tokens, rows=rows, logits=logits, entropy=entropy, near_ties=near_ties)
