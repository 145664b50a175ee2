"""Activity selection (arXiv 2505.03997)."""

from dataclasses import dataclass
from math import log
from string import ascii_uppercase

import torch
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.algorithms.maximum_subarray import multisets
from plateaulens.tasks.algorithms.string_task import FixedInput, in_step
from plateaulens.tasks.base import Feature, require

LARGEST = 9  # starts and durations are 1..9, so that ends are 2..18


@dataclass(frozen=True, kw_only=True)
class ActivitySelection(FixedInput):
    """All starts, then all ends of n activities; the answer, start and end of those the greedy choice takes.

    Numbers are letters, B = 1 to S = 18. The greedy choice goes by the end, of equal ends by the order given, and
    takes what does not start before the last one taken ends. Starts and durations, all from 1..9, together are a
    uniform multiset in random order, drawn afresh for every example (the paper's training multisets are distinct).

    >>> print(ActivitySelection(n=4).example(seed=1))
    prompt  DCJEFISN
    answer  =DFJS<EOS>

    Args:
        n: activities.
        answer_only: see `StringTask`.

    Raises:
        ValueError: unless n >= 1.
    """

    n: int = 16
    symbols = ascii_uppercase[: 2 * LARGEST + 1]

    def __post_init__(self) -> None:
        require(self.n >= 1, f"ActivitySelection needs n >= 1 activities, got n={self.n}")

    @property
    def n_answer(self) -> int:
        return 2 * min(self.n, LARGEST)  # no two that are taken start at once

    @property
    def n_ctx(self) -> int:
        return 4 * self.n + 2

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        starts, durations = (multisets(n, 2 * self.n, LARGEST, rng) + 1).chunk(2, 1)
        return torch.cat([starts, starts + durations], 1)

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        return greedy(*inputs.chunk(2, 1))[:, : self.n_answer]

    def features(self, batch: Batch, released: bool = False) -> dict[str, Feature]:
        """`retrieve_start_times`: the start of each activity, read at its end."""
        starts = batch.tokens[:, : self.n]
        return {"retrieve_start_times": in_step(starts, self.n, kind="integer", published="loud")}

    def published_chance(self) -> float:
        return log(self.d_vocab - 1)


def greedy(starts: Int[Tensor, "batch n"], ends: Int[Tensor, "batch n"]) -> Int[Tensor, "batch answer"]:
    """Start and end of each activity taken, in order; then -1."""
    ends, order = ends.sort(dim=1, stable=True)
    starts = starts.gather(1, order)
    free, taken = torch.zeros_like(ends[:, 0]), []
    for start, end in zip(starts.unbind(1), ends.unbind(1)):
        taken.append(start >= free)
        free = end.where(taken[-1], free)
    left = ~torch.stack(taken, 1)[..., None]
    pairs = torch.stack([starts, ends], 2).masked_fill(left, -1)
    front = left.long().sort(dim=1, stable=True).indices  # those taken move to the front, in their order
    return pairs.gather(1, front.expand_as(pairs)).flatten(1)
