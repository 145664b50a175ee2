"""What can be seen: pure functions on tensors, one definition a name, ignorant of models.

Every function reduces its last axes and keeps the leading ones, so it broadcasts over batches,
steps or seeds, and none waits for the device.
"""

from plateaulens.metrics.attention import attention_progress, attention_progress_global
from plateaulens.metrics.geometry import cosine_matrix, mean_pairwise_cosine
from plateaulens.metrics.outputs import accuracy, cross_entropy, repetition_frequency, sequence_entropy

__all__ = [
    "accuracy",
    "attention_progress",
    "attention_progress_global",
    "cosine_matrix",
    "cross_entropy",
    "mean_pairwise_cosine",
    "repetition_frequency",
    "sequence_entropy",
]
