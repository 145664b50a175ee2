"""Metrics as pure functions of tensors, independent of models.

    functional.mean_pairwise_cosine(hidden)            # [..., out, d_model] -> [...]

Leading axes are kept, so that the functions broadcast over batches, steps or seeds; none synchronizes with the device.
Most reduce the last axes to one value for each example. `cosine_matrix` and `softmax_pattern` return a map;
`attention_progress_global`, `anisotropy` and `centered_anisotropy` need a batch axis, as they compare examples.
"""

from plateaulens.metrics.functional.attention import attention_progress, attention_progress_global, softmax_pattern
from plateaulens.metrics.functional.geometry import (
    anisotropy,
    centered_anisotropy,
    cosine_matrix,
    effective_rank,
    mean_cosine_of,
    mean_norm,
    mean_pairwise_cosine,
    participation_ratio,
    stable_rank,
)
from plateaulens.metrics.functional.outputs import (
    accuracy,
    count_check,
    cross_entropy,
    distinct_ngrams,
    exact_match,
    first_share,
    mean_over_answer,
    ngram_repetition,
    repetition_frequency,
    sequence_entropy,
    sequence_log_prob,
)
from plateaulens.tracing.next_token import token_entropy

__all__ = [
    "accuracy",
    "anisotropy",
    "attention_progress",
    "attention_progress_global",
    "centered_anisotropy",
    "cosine_matrix",
    "count_check",
    "cross_entropy",
    "distinct_ngrams",
    "effective_rank",
    "exact_match",
    "first_share",
    "mean_cosine_of",
    "mean_norm",
    "mean_over_answer",
    "mean_pairwise_cosine",
    "ngram_repetition",
    "participation_ratio",
    "repetition_frequency",
    "sequence_entropy",
    "sequence_log_prob",
    "softmax_pattern",
    "stable_rank",
    "token_entropy",
]
