"""Counting how often each number occurs (arXiv 2506.13688, figs 15 and 16)."""

from dataclasses import dataclass
from math import comb, log

from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import AttentionMaps, check, output_map
from plateaulens.tasks.sequences.number_task import NumberTask


@dataclass(frozen=True, kw_only=True)
class Histogram(NumberTask):
    """Answer i is how often prompt number i occurs in the prompt, itself included; the separator is token 0.

    >>> print(Histogram(n=6, max_value=4).example(seed=0))
    prompt  1 4 2 1 4 4 |
    answer  2 3 1 2 3 3

    Args:
        n: Number of prompt numbers.
        max_value: Largest prompt number; prompt numbers are drawn from 1..max_value.

    Raises:
        ValueError: unless n >= 1 and max_value >= 2.
    """

    max_value: int = 12
    separator = 0  # pyright: ignore[reportAssignmentType]  # a constant property

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.max_value >= 2, f"Histogram needs max_value >= 2 numbers, got max_value={self.max_value}")

    @property
    def values(self) -> range:
        return range(1, self.max_value + 1)

    @property
    def d_vocab(self) -> int:
        return max(self.max_value, self.n) + 1

    @property
    def answer_values(self) -> range:
        return range(1, self.n + 1)

    @property
    def depth(self) -> int:
        return 2

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        return (x[:, :, None] == x[:, None, :]).sum(-1)

    def optimal_attention(self, batch: Batch | None = None) -> AttentionMaps:
        """The first layer attends to the prompt number itself; no map is known for the second, which counts."""
        return output_map([(r,) for r in range(self.n)], self.prompt_len - 1, self.n_targets), None

    def loss_plateau(self) -> float:
        """Loss floor plus the entropy of the count of each number, 1 + Binomial(n-1, 1/max_value), in nats."""
        q, rest = 1 / self.max_value, self.n - 1
        shares = [comb(rest, m) * q**m * (1 - q) ** (rest - m) for m in range(self.n)]
        return self.loss_floor() + self.n * -sum(p * log(p) for p in shares if p) / self.n_targets
