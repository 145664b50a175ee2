"""`choose`: the next token of each sequence, greedy or drawn, and whether rounding could have changed it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.batch import GREEDY, Batch, Decoding

NEAR_TIE_LOGITS = 1e-3  # two logits that differ by less than this are a near tie
CHUNK_LOGITS = 2**16  # logits that are processed at once, so that intermediate results fit the processor's cache
BLOCK_SIZE = 128  # tokens of a block in `_best_two`; vocabulary sizes are often multiples of it


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenChoice:
    """How generated tokens are chosen.

    Attributes:
        decoding: Temperature, top-k and forbidden tokens.
        noise: Gumbel noise of each generated token (`gumbel_noise`); None for greedy decoding.
        given: Tokens that are taken instead of the model's for the first steps; -1 where the model chooses.
    """

    decoding: Decoding = GREEDY
    noise: Float[Tensor, "batch out d_vocab"] | None = None
    given: Int[Tensor, "batch given"] | None = None


GREEDY_CHOICE = TokenChoice()


def choose(
    logits: Float[Tensor, "batch d_vocab"], choice: TokenChoice, step: int = 0
) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, " batch"]]:
    """Choose the next token of each row, and find which of them rounding could have changed.

    A draw from a softmax is the largest logit after Gumbel noise was added: given the noise, it is as repeatable as
    greedy decoding.

    Args:
        logits: Logits of the next token; unchanged on return.
        choice: How tokens are chosen.
        step: Number of tokens generated before this one.

    Returns:
        The tokens, and a mask of the rows whose token is a near tie.
    """
    forbidden = torch.tensor(choice.decoding.forbidden, device=logits.device).long()
    scores = logits.float()
    forbidden_scores = scores[:, forbidden]
    scores.index_fill_(1, forbidden, -torch.inf)
    if choice.noise is None:
        token, best, second = _best_two(scores)
        near_ties = ~(best - second >= NEAR_TIE_LOGITS)[:, 0]  # also True for NaN
    else:
        token, near_ties = _draw(scores, choice.decoding, choice.noise[:, step])
    scores[:, forbidden] = forbidden_scores  # `scores` may be the caller's tensor
    if choice.given is not None and step < choice.given.shape[1]:
        given = choice.given[:, step : step + 1]
        token = torch.where(given < 0, token, given)
    return token, near_ties


def _draw(
    scores: Float[Tensor, "batch d_vocab"], decoding: Decoding, noise: Float[Tensor, "batch d_vocab"]
) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, " batch"]]:
    """The token with the largest sum of score and noise among the top k, and whether it is a near tie."""
    scores, tolerance = scores / decoding.temperature, NEAR_TIE_LOGITS / decoding.temperature
    noisy = scores + noise.to(scores)
    if decoding.top_k is None or decoding.top_k >= scores.shape[1]:
        best, token = noisy.topk(2)
        return token[:, :1], ~(best[:, 0] - best[:, 1] >= tolerance)
    threshold = scores.topk(decoding.top_k).values[:, -1:]
    token = noisy.masked_fill(scores < threshold, -torch.inf).argmax(1, keepdim=True)
    surely_outside = scores < threshold - tolerance
    best, candidates = noisy.masked_fill(surely_outside, -torch.inf).topk(2)
    near_ties = (candidates[:, :1] != token)[:, 0] | ~(best[:, 0] - best[:, 1] >= tolerance)
    at_threshold = (scores.gather(1, token) < threshold + tolerance)[:, 0]
    replaceable = ((~surely_outside).sum(1) > decoding.top_k) & at_threshold
    return token, near_ties | replaceable


def _best_two(scores: Float[Tensor, "batch d_vocab"]) -> tuple[Tensor, Tensor, Tensor]:
    """The best token of each row (the first of equal ones), its score and the second best score, each [batch 1].

    The maximum of values alone is several times faster than the maximum with its index, so the best block is found
    first.
    """
    width = math.gcd(scores.shape[1], BLOCK_SIZE)
    blocks = scores.unflatten(1, (-1, width))
    block_maxima = blocks.amax(2)
    best, block = block_maxima.max(1, keepdim=True)
    best_block = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]]
    offset = best_block.max(1, keepdim=True).indices
    other_blocks = block_maxima.scatter(1, block, -torch.inf).amax(1, keepdim=True)
    rest_of_block = best_block.scatter(1, offset, -torch.inf).amax(1, keepdim=True)
    return block * width + offset, best, torch.maximum(other_blocks, rest_of_block)


def gumbel_noise(batch: Batch, lengths: list[int], d_vocab: int) -> Float[Tensor, "batch out d_vocab"]:
    """Gumbel noise for each prompt, a function of the seed and of the prompt's tokens alone."""
    draws = []
    for row, n in zip(batch.tokens.cpu(), lengths, strict=True):
        words = np.random.SeedSequence([batch.decoding.seed, *row[:n].tolist()]).generate_state(1, np.uint64)
        rng = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        draws.append(-torch.empty(batch.answer_positions.shape[1], d_vocab).exponential_(generator=rng).log())
    return torch.stack(draws).to(batch.tokens.device)


def token_entropy(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats of each predicted distribution."""
    chunks = logits.reshape(-1, logits.shape[-1]).split(max(1, CHUNK_LOGITS // logits.shape[-1]))
    return torch.cat([_entropy(chunk.float()) for chunk in chunks]).view(logits.shape[:-1])


def _entropy(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    r"""\ln s - \sum_v z_v e^{z_v} / s with s = \sum_v e^{z_v}, z the logits less the largest."""
    # Clamped because -inf times 0 is NaN; e^{-200} is 0 in float32.
    z = (logits - logits.amax(-1, keepdim=True)).clamp(min=-200.0)
    e = z.exp()
    s = e.sum(-1)
    return s.log() - torch.linalg.vecdot(e, z) / s
