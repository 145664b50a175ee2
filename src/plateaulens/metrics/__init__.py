"""What can be seen: pure functions on tensors, one definition a name, ignorant of models.

Every function reduces its last axes and keeps the leading ones, so it broadcasts over batches,
steps or seeds, and none waits for the device.
"""

from plateaulens.metrics.attention import attention_progress, attention_progress_global, softmax_pattern
from plateaulens.metrics.geometry import (
    cosine_matrix,
    effective_rank,
    mean_cosine_of,
    mean_norm,
    mean_pairwise_cosine,
    participation_ratio,
    stable_rank,
)
from plateaulens.metrics.outputs import (
    accuracy,
    count_check,
    cross_entropy,
    first_share,
    repetition_frequency,
    sequence_entropy,
    sequence_log_prob,
)

__all__ = [
    "accuracy",
    "attention_progress",
    "attention_progress_global",
    "cosine_matrix",
    "count_check",
    "cross_entropy",
    "effective_rank",
    "first_share",
    "mean_cosine_of",
    "mean_norm",
    "mean_pairwise_cosine",
    "participation_ratio",
    "repetition_frequency",
    "sequence_entropy",
    "sequence_log_prob",
    "softmax_pattern",
    "stable_rank",
]
