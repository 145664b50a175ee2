"""`choose`: which token comes next, greedily or drawn, and whether rounding could have chosen another."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.batch import Batch, Decoding

NEAR = 1e-3  # logits whose difference is below this are not told apart
IN_CACHE = 2**16  # logits that are worked on at once: what is made of them stays in the processor's cache
BLOCK = 128  # tokens; vocabularies are multiples of it, as a rule


def choose(
    logits: Float[Tensor, "batch d_vocab"], decoding: Decoding, noise: Float[Tensor, "batch d_vocab"] | None
) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, " batch"]]:
    """The next tokens, and which of them rounding could have changed.

    A draw from a softmax is the largest of the logits with Gumbel noise added, so that it is as good as
    greedy, and as repeatable.
    """
    never = torch.tensor(decoding.forbidden, device=logits.device).long()
    scores = logits.float()
    held = scores[:, never]
    found = _best(scores.index_fill_(1, never, -torch.inf), decoding, noise)
    scores[:, never] = held  # somebody may look at them still
    return found


def _best(
    scores: Float[Tensor, "batch d_vocab"], decoding: Decoding, noise: Float[Tensor, "batch d_vocab"] | None
) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, " batch"]]:
    if noise is None:
        token, best, second = _likeliest(scores)
        return token, ~(best - second >= NEAR)[:, 0]  # what is no number is not told apart either
    scores, near = scores / decoding.temperature, NEAR / decoding.temperature
    drawn = scores + noise.to(scores)
    if decoding.top_k is None or decoding.top_k >= scores.shape[1]:
        best, token = drawn.topk(2)
        return token[:, :1], ~(best[:, 0] - best[:, 1] >= near)
    least = scores.topk(decoding.top_k).values[:, -1:]
    token = drawn.masked_fill(scores < least, -torch.inf).argmax(1, keepdim=True)
    outside = scores < least - near  # whatever rounding does
    best, first = drawn.masked_fill(outside, -torch.inf).topk(2)
    near_ties = (first[:, :1] != token)[:, 0] | ~(best[:, 0] - best[:, 1] >= near)
    replaceable = ((~outside).sum(1) > decoding.top_k) & (scores.gather(1, token) < least + near)[:, 0]
    return token, near_ties | replaceable


def _likeliest(scores: Float[Tensor, "batch d_vocab"]) -> tuple[Tensor, Tensor, Tensor]:
    """The best token of each row, of a tie the first, as everybody takes it; its score, and that of the next best.

    Values alone are found several times faster than with their places, so first comes the best of each block.
    """
    width = math.gcd(scores.shape[1], BLOCK)
    blocks = scores.unflatten(1, (-1, width))
    tops = blocks.amax(2)
    best, block = tops.max(1, keepdim=True)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]]
    place = inside.max(1, keepdim=True).indices
    others = [x.scatter(1, i, -torch.inf).amax(1, keepdim=True) for x, i in ((tops, block), (inside, place))]
    return block * width + place, best, torch.maximum(*others)


def gumbel_noise(batch: Batch, lengths: list[int], d_vocab: int) -> Float[Tensor, "batch out d_vocab"]:
    """Gumbel noise of each prompt: of the seed and its own tokens, whatever it is batched with."""
    draws = []
    for row, n in zip(batch.tokens.cpu(), lengths, strict=True):
        words = np.random.SeedSequence([batch.decoding.seed, *row[:n].tolist()]).generate_state(1, np.uint64)
        rng = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        draws.append(-torch.empty(batch.answer_positions.shape[1], d_vocab).exponential_(generator=rng).log())
    return torch.stack(draws).to(batch.tokens.device)


def token_entropy(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats of each predicted distribution."""
    rows = logits.reshape(-1, logits.shape[-1]).split(max(1, IN_CACHE // logits.shape[-1]))
    return torch.cat([_entropy(some.float()) for some in rows]).view(logits.shape[:-1])


def _entropy(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    r"""\ln s - \sum_v z_v e^{z_v} / s with s = \sum_v e^{z_v}, z the logits less the largest."""
    # clamped, as -inf times 0 is not 0; e^{-200} is none that float32 has
    z = (logits - logits.amax(-1, keepdim=True)).clamp(min=-200.0)
    e = z.exp()
    s = e.sum(-1)
    return s.log() - torch.linalg.vecdot(e, z) / s
