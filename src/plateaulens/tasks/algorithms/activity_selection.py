"""Activity selection by the greedy algorithm (arXiv 2505.03997)."""

from dataclasses import dataclass
from math import log
from string import ascii_uppercase

import torch
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.algorithms.maximum_subarray import multisets
from plateaulens.tasks.algorithms.string_task import FixedLengthTask, evenly_placed
from plateaulens.tasks.base import Feature, check

MAX_START = 9  # starts and durations are 1..9, so that ends are 2..18


@dataclass(frozen=True, kw_only=True)
class ActivitySelection(FixedLengthTask):
    """The starts and then the ends of n activities; the answer is those of the greedy choice.

    Numbers are letters, B = 1 to S = 18. Activities are considered by their ends, equal ends in the given order, and
    selected if they do not start before the last selected one ends. Starts and durations, all from 1..9, together are a
    uniform multiset in random order, drawn independently for every example (the paper's training multisets are
    distinct).

    >>> print(ActivitySelection(n=4).example(seed=1))
    prompt  DCJEFISN
    answer  =DFJS<EOS>

    Args:
        n: Number of activities.
        answer_only: Exclude `=` from the loss and from decoding.

    Raises:
        ValueError: unless n >= 1.
    """

    n: int = 16
    symbols = ascii_uppercase[: 2 * MAX_START + 1]  # pyright: ignore[reportAssignmentType]  # a constant property

    def __post_init__(self) -> None:
        check(self.n >= 1, f"ActivitySelection needs n >= 1 activities, got n={self.n}")

    @property
    def n_answer(self) -> int:
        return 2 * min(self.n, MAX_START)  # no two selected activities start at the same time

    @property
    def n_ctx(self) -> int:
        return 4 * self.n + 2

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        starts, durations = (multisets(n, 2 * self.n, MAX_START, rng) + 1).chunk(2, 1)
        return torch.cat([starts, starts + durations], 1)

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        return greedy(*inputs.chunk(2, 1))[:, : self.n_answer]

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`retrieve_start_times`: the start of each activity, read at the position of its end."""
        starts = batch.tokens[:, : self.n]
        return {"retrieve_start_times": evenly_placed(starts, self.n, kind="integer", published="loud")}

    def published_chance(self) -> float:
        return log(self.d_vocab - 1)


def greedy(starts: Int[Tensor, "batch n"], ends: Int[Tensor, "batch n"]) -> Int[Tensor, "batch answer"]:
    """Start and end of each selected activity in order, then -1."""
    ends, order = ends.sort(dim=1, stable=True)
    starts = starts.gather(1, order)
    free_from, selected = torch.zeros_like(ends[:, 0]), []
    for start, end in zip(starts.unbind(1), ends.unbind(1)):
        selected.append(start >= free_from)
        free_from = end.where(selected[-1], free_from)
    rejected = ~torch.stack(selected, 1)[..., None]
    pairs = torch.stack([starts, ends], 2).masked_fill(rejected, -1)
    selected_first = rejected.long().sort(dim=1, stable=True).indices
    return pairs.gather(1, selected_first.expand_as(pairs)).flatten(1)
