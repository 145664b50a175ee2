"""What can be seen: pure functions on tensors, one definition a name, ignorant of models.

Leading axes are kept, so that functions broadcast over batches, steps or seeds, and none waits for the device. Most
reduce their last axes to a value of each example; `cosine_matrix`, `softmax_pattern` and `disconnected` give a map, and
`attention_progress_global` and `anisotropy` need a batch axis: they look across the examples.
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
