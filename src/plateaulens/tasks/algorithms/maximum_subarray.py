"""The maximum subarray (arXiv 2505.03997), and uniform sampling of multisets.

The paper's training multisets are distinct; here the examples of every batch are independent.
"""

from dataclasses import dataclass
from math import log
from string import ascii_uppercase

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.algorithms.string_task import FixedLengthTask, evenly_placed
from plateaulens.tasks.base import Feature, check, permutations


@dataclass(frozen=True, kw_only=True)
class MaximumSubarray(FixedLengthTask):
    """The contiguous subarray with the largest sum, of integers -largest..largest written as letters A, B, C, ...

    By Kadane's algorithm, which restarts after a negative sum, not after a sum of 0, and keeps the first of equally
    good subarrays.

    >>> print(MaximumSubarray(length=8).example(seed=1))
    prompt  DQBRKQRE
    answer  =RKQR<EOS>

    Args:
        length: Number of integers.
        largest: Largest magnitude of an integer, at most 12 (25 letters).
        answer_only: Exclude `=` from the loss and from decoding.

    Raises:
        ValueError: for parameters outside these ranges.
    """

    length: int = 64
    largest: int = 9

    def __post_init__(self) -> None:
        check(self.length >= 2, f"MaximumSubarray needs length >= 2, got length={self.length}")
        check(
            1 <= self.largest <= 12, f"largest must lie in 1..12, as there are 25 letters, got largest={self.largest}"
        )

    @property
    def symbols(self) -> str:
        return ascii_uppercase[: 2 * self.largest + 1]

    @property
    def n_answer(self) -> int:
        return self.length

    @property
    def n_ctx(self) -> int:
        return 2 * self.length + 2

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        return multisets(n, self.length, len(self.symbols), rng)

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        ending, start = kadane(inputs - self.largest)
        last = ending.argmax(1, keepdim=True)  # the first of equal sums
        places = start.gather(1, last) + torch.arange(self.length, device=inputs.device)
        return inputs.gather(1, places.minimum(last)).masked_fill(places > last, -1)

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`is_prev_negative`, `max_ending_here` and `max_so_far` of each number, read one token later.

        `max_so_far` is not in the paper. With `released`, the first `max_ending_here` is 0, and positions are those
        that the ablation of the released code edits, length // 2 too late (its probes read at the positions used here).
        """
        x = batch.tokens[:, : self.length] - self.largest
        ending, _ = kadane(x)
        labels = F.pad(ending[:, 1:], (1, 0)) if released else ending
        first = 1 + self.length // 2 * released
        return {
            "is_prev_negative": evenly_placed((x[:, :-1] < 0).long(), first, published="quiet"),
            "max_ending_here": evenly_placed(labels, first, kind="integer", published="loud"),
            "max_so_far": evenly_placed(ending.cummax(1).values, first, kind="integer"),
        }

    def published_chance(self) -> float:
        return log(self.d_vocab - 1)


def kadane(x: Int[Tensor, "batch n"]) -> tuple[Int[Tensor, "batch n"], Int[Tensor, "batch n"]]:
    """Largest sum of a subarray that ends at each position, and the start of the longest such subarray."""
    sums = F.pad(x.cumsum(1), (1, 0))
    ending = sums[:, 1:] - sums[:, :-1].cummin(1).values
    restarts = F.pad(ending[:, :-1] < 0, (1, 0), value=True)
    return ending, (restarts * torch.arange(x.shape[1], device=x.device)).cummax(1).values


def multisets(n: int, size: int, values: int, rng: torch.Generator) -> Int[Tensor, "batch size"]:
    """`n` uniform random multisets of `size` numbers 0..values-1, each in random order.

    Stars and bars: of size + values - 1 places in a row, `size` hold stars, and a star's value is the number of bars
    before it. Counts are far less even than those of independent draws.
    """
    stars = permutations(n, size + values - 1, rng)[:, :size]
    return stars - stars.argsort(1).argsort(1)
