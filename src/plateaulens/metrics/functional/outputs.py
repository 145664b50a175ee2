"""What comes out of the model: loss, accuracy, repetition, entropy.

Answers may be ragged: the `valid` masks say which entries exist. Rows without any give NaN.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.metrics.functional.precision import wide


def mean_over_answer(values: Float[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    """Mean of the values that an answer has."""
    return values.where(valid, 0.0).sum(-1) / valid.sum(-1)


def cross_entropy(
    logits: Float[Tensor, "*batch pos d_vocab"],
    targets: Int[Tensor, "*batch pos"],
    valid: Bool[Tensor, "*batch pos"],
) -> Float[Tensor, "*batch"]:
    """Mean of -log p(target) in nats over the valid positions of each row."""
    return mean_over_answer(-_log_p(logits, targets), valid)


def _log_p(
    logits: Float[Tensor, "*batch out d_vocab"], tokens: Int[Tensor, "*batch out"]
) -> Float[Tensor, "*batch out"]:
    """Log p of each token; of any where there is none."""
    return wide(logits).log_softmax(-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]


def accuracy(
    predicted: Int[Tensor, "*batch out"], answers: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """Share of answer tokens that are right, each token counted by itself (arXiv 2506.13688, not exact match)."""
    return mean_over_answer((predicted == answers).float(), valid)


def exact_match(
    predicted: Int[Tensor, "*batch out"], answers: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """1 where every token of an answer is right, else 0 (arXiv 2505.03997: from `=` to the first EOS)."""
    return accuracy(predicted, answers, valid).floor()


def repetition_frequency(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """rho: share of neighbors that are equal, over the G-1 pairs of an answer (arXiv 2506.13688)."""
    equal = tokens[..., 1:] == tokens[..., :-1]
    return mean_over_answer(equal.float(), valid[..., 1:] & valid[..., :-1])


def _grams(tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"], n: int) -> tuple[Tensor, Tensor]:
    """Which pairs of n-grams are equal [... gram gram], and which n-grams exist [... gram]."""
    grams, exist = tokens.unfold(-1, n, 1), valid.unfold(-1, n, 1).all(-1)
    equal = (grams[..., :, None, :] == grams[..., None, :, :]).all(-1)
    return equal & exist[..., :, None] & exist[..., None, :], exist


def distinct_ngrams(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"], n: int
) -> Float[Tensor, "*batch"]:
    """distinct-n: different n-grams of an answer over all of its n-grams (arXiv 1510.03055, for n = 1 and 2)."""
    if n > tokens.shape[-1]:
        return torch.full(tokens.shape[:-1], float("nan"), device=tokens.device)
    equal, exist = _grams(tokens, valid, n)
    return mean_over_answer((~equal.tril(-1).any(-1)).float(), exist)


def ngram_repetition(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"], n: int
) -> Float[Tensor, "*batch"]:
    """seq-rep-n: share of n-grams that were there before, 1 - distinct-n (seq-rep-n of arXiv 1908.04319)."""
    return 1 - distinct_ngrams(tokens, valid, n)


def sequence_entropy(tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    r"""Entropy in nats of the token values within one answer.

    \sum_v p_v ln(1 / (p_v + 1e-6)), p_v the share of value v among the answer's tokens
    (arXiv 2506.13688, prefix-sum and addition scripts). As a sum over tokens, each weighing 1/n.
    """
    equal, exist = _grams(tokens, valid, 1)
    p = equal.sum(-1) / exist.sum(-1, keepdim=True)
    return mean_over_answer(-(p + 1e-6).log(), exist)


def sequence_log_prob(
    logits: Float[Tensor, "*batch out d_vocab"], answers: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """Log p(the whole true answer), in nats: the sum over its tokens, teacher-forced.

    Shows progress where no answer is right yet; the kind of smooth measure of arXiv 2304.15004.
    """
    return _log_p(logits, answers).where(valid, 0.0).sum(-1)


def first_share(tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    """alpha_1: share of tokens equal to the first one, itself included (arXiv 2506.13688, Repeat tasks)."""
    return mean_over_answer((tokens == tokens[..., :1]).float(), valid)


def count_check(
    tokens: Int[Tensor, "*batch out"], answers: Int[Tensor, "*batch out"], values: range
) -> Float[Tensor, "*batch"]:
    """Share of `values` that occur as often as they should (arXiv 2506.13688, permutation): is the multiset right?"""
    of = torch.arange(values.start, values.stop, device=tokens.device)
    counts = ((x[..., None] == of).sum(-2) for x in (tokens, answers))
    return torch.eq(*counts).float().mean(-1)
