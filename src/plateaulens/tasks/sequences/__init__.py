"""The sequence tasks of arXiv 2506.13688."""

from plateaulens.tasks.sequences.addition import Addition
from plateaulens.tasks.sequences.copying import Copy, Reverse
from plateaulens.tasks.sequences.histogram import Histogram
from plateaulens.tasks.sequences.moving_window_sum import MovingWindowSum, WindowMix
from plateaulens.tasks.sequences.permutation import Permutation
from plateaulens.tasks.sequences.prefix_sum import PrefixSum
from plateaulens.tasks.sequences.repeat import Repeat

__all__ = [
    "Addition",
    "Copy",
    "Histogram",
    "MovingWindowSum",
    "Permutation",
    "PrefixSum",
    "Repeat",
    "Reverse",
    "WindowMix",
]
