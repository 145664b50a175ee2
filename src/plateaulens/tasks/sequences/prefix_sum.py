"""Prefix sums modulo p (arXiv 2506.13688, figs 6, 11 and 12)."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import check, output_map, permutations
from plateaulens.tasks.sequences.number_task import ModularTask


@dataclass(frozen=True, kw_only=True)
class PrefixSum(ModularTask):
    """Answer i is the sum of all prompt numbers up to i, modulo p.

    Consecutive answers are never equal, so repetition is uninformative here; the entropy of the answer is informative.

    >>> print(PrefixSum(n=6, p=7).example(seed=0))
    prompt  3 4 6 1 2 4 |
    answer  3 0 6 0 2 6

    Args:
        n: Number of prompt numbers.
        p: Modulus, at least 3; prompt numbers are drawn from 1..p-1.
        no_repeat: Draw the prompt numbers without replacement, which needs n <= p-1. With n = p-1 they are a
            permutation, so that the last answer is always the same.

    Raises:
        ValueError: for parameters outside these ranges.
    """

    no_repeat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            not self.no_repeat or self.n < self.p,
            f"no_repeat needs n <= p-1 different numbers, got n={self.n} and p={self.p}; use a larger p",
        )

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch n"]:
        if not self.no_repeat:
            return super().draw(n, rng)
        return permutations(n, self.p - 1, rng)[:, : self.n] + 1

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        return x.cumsum(1) % self.p

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        """Answer r attends to prompt number r and to the previous answer, which is at the query position itself."""
        rows: list[tuple[int, ...]] = [(r, r + self.n) if r else (0,) for r in range(self.n)]
        return (output_map(rows, self.prompt_len - 1, self.n_targets),)

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return (*super().default_metrics, "tf_accuracy")

    @property
    def partial_positions(self) -> tuple[int, ...]:
        constant = (self.n - 1,) if self.no_repeat and self.n == self.p - 1 else ()
        return tuple(dict.fromkeys((0, *constant)))

    def loss_floor(self) -> float:
        """Entropy of the prompt numbers after the first, drawn with or without replacement, per target, in nats."""
        if not self.no_repeat:
            return super().loss_floor()
        return sum(log(self.p - 1 - i) for i in range(1, self.n)) / self.n_targets

    def loss_plateau(self) -> float:
        """Loss floor plus ln(p-1) for each answer outside the partial solution, in nats.

        This is the loss of a model that only knows that an answer differs from the previous one; with `no_repeat` it is
        an upper bound.
        """
        return self.loss_floor() + (self.n - len(self.partial_positions)) * log(self.p - 1) / self.n_targets
