"""Metrics of logits and of generated tokens: loss, accuracy, repetition, entropy.

Answers may differ in length: `valid` marks the entries that exist. Rows without any give NaN.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.metrics.functional.precision import at_least_float32


def mean_over_answer(values: Float[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    """Mean of `values` over the tokens of each answer that exist."""
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
    """Log probability of each token; a meaningless value where the token is -1."""
    return at_least_float32(logits).log_softmax(-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]


def accuracy(
    predicted: Int[Tensor, "*batch out"], answers: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """Share of correct tokens of each answer (arXiv 2506.13688; not exact match)."""
    return mean_over_answer((predicted == answers).float(), valid)


def exact_match(
    predicted: Int[Tensor, "*batch out"], answers: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """1 where every token of an answer is correct, else 0 (arXiv 2505.03997: from `=` to the first EOS)."""
    return accuracy(predicted, answers, valid).floor()


def repetition_frequency(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """Repetition frequency rho: share of equal neighbors among the G-1 pairs of an answer (arXiv 2506.13688)."""
    equal = tokens[..., 1:] == tokens[..., :-1]
    return mean_over_answer(equal.float(), valid[..., 1:] & valid[..., :-1])


def _equal_ngrams(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"], n: int
) -> tuple[Tensor, Tensor]:
    """Which pairs of n-grams are equal [... gram gram], and which n-grams exist [... gram]."""
    grams, exist = tokens.unfold(-1, n, 1), valid.unfold(-1, n, 1).all(-1)
    equal = (grams[..., :, None, :] == grams[..., None, :, :]).all(-1)
    return equal & exist[..., :, None] & exist[..., None, :], exist


def distinct_ngrams(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"], n: int
) -> Float[Tensor, "*batch"]:
    """distinct-n: number of different n-grams of an answer over the number of all (arXiv 1510.03055, n = 1 and 2)."""
    if n > tokens.shape[-1]:
        return torch.full(tokens.shape[:-1], float("nan"), device=tokens.device)
    equal, exist = _equal_ngrams(tokens, valid, n)
    return mean_over_answer((~equal.tril(-1).any(-1)).float(), exist)


def ngram_repetition(
    tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"], n: int
) -> Float[Tensor, "*batch"]:
    """seq-rep-n: share of n-grams that occurred before in the answer, 1 - distinct-n (arXiv 1908.04319)."""
    return 1 - distinct_ngrams(tokens, valid, n)


def sequence_entropy(tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    r"""Entropy in nats of the token values within one answer.

    \sum_v p_v ln(1 / (p_v + 1e-6)), p_v the share of value v among the answer's tokens
    (arXiv 2506.13688, prefix-sum and addition scripts). Computed as a mean over the n tokens.
    """
    equal, exist = _equal_ngrams(tokens, valid, 1)
    p = equal.sum(-1) / exist.sum(-1, keepdim=True)
    return mean_over_answer(-(p + 1e-6).log(), exist)


def sequence_log_prob(
    logits: Float[Tensor, "*batch out d_vocab"], answers: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]
) -> Float[Tensor, "*batch"]:
    """Log probability of the whole true answer in nats: the sum over its tokens, teacher-forced.

    A smooth metric in the sense of arXiv 2304.15004: it shows progress while no answer is correct yet.
    """
    return _log_p(logits, answers).where(valid, 0.0).sum(-1)


def first_share(tokens: Int[Tensor, "*batch out"], valid: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    """alpha_1: share of the answer's tokens equal to the first, itself included (arXiv 2506.13688, Repeat tasks)."""
    return mean_over_answer((tokens == tokens[..., :1]).float(), valid)


def count_check(
    tokens: Int[Tensor, "*batch out"], answers: Int[Tensor, "*batch out"], values: range
) -> Float[Tensor, "*batch"]:
    """Share of `values` that occur as often in `tokens` as in `answers` (arXiv 2506.13688, permutation)."""
    candidates = torch.arange(values.start, values.stop, device=tokens.device)
    counts = ((x[..., None] == candidates).sum(-2) for x in (tokens, answers))
    return torch.eq(*counts).float().mean(-1)
