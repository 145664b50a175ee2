"""The maximum subarray (arXiv 2505.03997), and draws that are uniform over multisets.

The paper's training multisets are distinct; here every batch is fresh, its examples independent.
"""

from dataclasses import dataclass
from math import log
from string import ascii_uppercase

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.algorithms.string_task import FixedInput, in_step
from plateaulens.tasks.base import Feature, permutations, require


@dataclass(frozen=True, kw_only=True)
class MaximumSubarray(FixedInput):
    """Of integers -largest..largest, written A, B, C ..., the run with the largest sum, by Kadane's algorithm.

    Kadane starts afresh after a negative sum, not after a sum of 0, and keeps the first of equally good runs.

    >>> print(MaximumSubarray(length=8).example(seed=1))
    prompt  DQBRKQRE
    answer  =RKQR<EOS>

    Args:
        length: integers.
        largest: of them, at most 12 (25 letters).
        answer_only: see `StringTask`.

    Raises:
        ValueError: for parameters outside these ranges.
    """

    length: int = 64
    largest: int = 9

    def __post_init__(self) -> None:
        require(self.length >= 2, f"MaximumSubarray needs length >= 2, got length={self.length}")
        require(1 <= self.largest <= 12, f"letters suffice for largest=1..12, got largest={self.largest}")

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
        last = ending.argmax(1, keepdim=True)  # the first of equals
        places = start.gather(1, last) + torch.arange(self.length, device=inputs.device)
        return inputs.gather(1, places.minimum(last)).masked_fill(places > last, -1)

    def features(self, batch: Batch, released: bool = False) -> dict[str, Feature]:
        """Of each number, read one token later: `is_prev_negative`, `max_ending_here`, and `max_so_far` (ours).

        `released`: the first `max_ending_here` is 0, and positions are those which the released ablation edits,
        length // 2 too late (the released probes read where ours do).
        """
        x = batch.tokens[:, : self.length] - self.largest
        ending, _ = kadane(x)
        labels = F.pad(ending[:, 1:], (1, 0)) if released else ending
        first = 1 + self.length // 2 * released
        return {
            "is_prev_negative": in_step((x[:, :-1] < 0).long(), first, published="quiet"),
            "max_ending_here": in_step(labels, first, kind="integer", published="loud"),
            "max_so_far": in_step(ending.cummax(1).values, first, kind="integer"),
        }

    def published_chance(self) -> float:
        return log(self.d_vocab - 1)


def kadane(x: Int[Tensor, "batch n"]) -> tuple[Int[Tensor, "batch n"], Int[Tensor, "batch n"]]:
    """The largest sum of a run that ends at each place, and where that run starts (the longest of equals)."""
    sums = F.pad(x.cumsum(1), (1, 0))
    ending = sums[:, 1:] - sums[:, :-1].cummin(1).values
    afresh = F.pad(ending[:, :-1] < 0, (1, 0), value=True)
    return ending, (afresh * torch.arange(x.shape[1], device=x.device)).cummax(1).values


def multisets(n: int, size: int, values: int, rng: torch.Generator) -> Int[Tensor, "batch size"]:
    """`n` uniform multisets of numbers 0..values-1, each in random order: far more uneven than independent draws.

    Stars and bars: among size + values - 1 places in a row, `size` hold stars; a star's value is the number of
    bars before it.
    """
    stars = permutations(n, size + values - 1, rng)[:, :size]
    return stars - stars.argsort(1).argsort(1)
