"""Repeat tasks: the answer is one number repeated (arXiv 2506.13688, figs 7, 21 and 22)."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import check, output_map
from plateaulens.tasks.sequences.number_task import ModularTask


@dataclass(frozen=True, kw_only=True)
class Repeat(ModularTask):
    """The answer repeats the first prompt number x_1 in k equal parts; part j = 0, 1, ... holds (x_1 + j) mod p.

    k = 1, 2 and 4 are the paper's Repeat_1, Repeat_2 and Repeat_4.

    >>> print(Repeat(n=6, p=7, k=2).example(seed=0))
    prompt  3 4 6 1 2 4 |
    answer  3 3 3 4 4 4

    Args:
        n: Number of prompt numbers, and of answers.
        p: Modulus, at least 3; prompt numbers are drawn from 1..p-1.
        k: Number of equal parts of the answer; a divisor of n.

    Raises:
        ValueError: for parameters outside these ranges.
    """

    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.k >= 1 and self.n % self.k == 0,
            f"the n={self.n} answers do not divide into k={self.k} equal parts; use a divisor of n",
        )

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        part = torch.arange(self.n, device=x.device) // (self.n // self.k)
        return (x[:, :1] + part) % self.p

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        """Every answer attends to the first prompt number (the paper defines no map for these tasks)."""
        return (output_map([(0,)] * self.n, self.prompt_len - 1, self.n_targets),)

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return (*super().default_metrics, "alpha_1", *(("alpha_1_halves", "part_accuracy") if self.k > 1 else ()))

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        size = self.n // self.k
        return {f"part {j + 1}": tuple(range(j * size, (j + 1) * size)) for j in range(self.k)}

    @property
    def collapse_positions(self) -> tuple[int, ...]:
        return tuple(i for positions in self.parts.values() for i in positions[1:])

    @property
    def collapse_groups(self) -> tuple[tuple[int, ...], ...]:
        return tuple(positions[1:] for positions in self.parts.values())

    def loss_plateau(self) -> float:
        """Loss floor plus ln(p-1) for the first answer, from which the others follow, in nats."""
        return self.loss_floor() + log(self.p - 1) / self.n_targets
