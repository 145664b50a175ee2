"""Copy and reverse: tasks without a partial solution and with hardly a plateau (arXiv 2506.13688, figs 17 and 18)."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import check, output_map
from plateaulens.tasks.sequences.number_task import NumberTask


@dataclass(frozen=True, kw_only=True)
class Copy(NumberTask):
    """The answer is the prompt numbers in their order; the separator is token 0.

    >>> print(Copy(n=5, max_value=9).example(seed=0))
    prompt  9 1 3 7 8 |
    answer  9 1 3 7 8

    Args:
        n: Number of prompt numbers.
        max_value: Largest prompt number; prompt numbers are drawn from 1..max_value.

    Raises:
        ValueError: unless n >= 1 and max_value >= 2.
    """

    max_value: int = 16
    separator = 0  # pyright: ignore[reportAssignmentType]  # a constant property

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.max_value >= 2,
            f"{type(self).__name__} needs max_value >= 2 different numbers, got max_value={self.max_value}",
        )

    @property
    def values(self) -> range:
        return range(1, self.max_value + 1)

    @property
    def d_vocab(self) -> int:
        return self.max_value + 1

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        return x

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        keys = self.answer(torch.arange(self.n)[None])[0].tolist()
        return (output_map([(key,) for key in keys], self.prompt_len - 1, self.n_targets),)

    def loss_plateau(self) -> float:
        """Loss of a model that knows nothing of the answer, (2n-1) ln(max_value) / 2n, in nats."""
        return (2 * self.n - 1) * log(self.max_value) / self.n_targets


@dataclass(frozen=True, kw_only=True)
class Reverse(Copy):
    """The answer is the prompt numbers in reverse order; the separator is token 0.

    >>> print(Reverse(n=5, max_value=9).example(seed=0))
    prompt  9 1 3 7 8 |
    answer  8 7 3 1 9

    Args:
        n: Number of prompt numbers.
        max_value: Largest prompt number; prompt numbers are drawn from 1..max_value.
    """

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        return x.flip(1)
