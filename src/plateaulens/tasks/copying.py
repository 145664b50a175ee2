"""Copy and reverse: no partial solution, so hardly a plateau (arXiv 2506.13688, figs 17 and 18)."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens._shapes import Batch
from plateaulens.tasks.base import Task, generator, output_map, require


@dataclass(frozen=True, kw_only=True)
class Copy(Task):
    """Repeat the prompt numbers, drawn from 1..max_value; the separator is token 0.

    >>> print(Copy(n=5, max_value=9).example(seed=0))
    prompt  9 1 3 7 8 |
    answer  9 1 3 7 8

    Raises:
        ValueError: unless n >= 1 and max_value >= 2.
    """

    n: int = 16
    max_value: int = 16

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(self.n >= 1, f"{name} needs n >= 1 prompt numbers, got n={self.n}")
        require(self.max_value >= 2, f"{name} needs max_value >= 2 different numbers, got {self.max_value}")

    @property
    def prompt_len(self) -> int:
        return self.n + 1

    @property
    def n_out(self) -> int:
        return self.n

    @property
    def d_vocab(self) -> int:
        return self.max_value + 1

    def order(self) -> list[int]:
        """The prompt index that each answer copies."""
        return list(range(self.n))

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        x = torch.randint(1, self.max_value + 1, (n, self.n), generator=generator(seed, device), device=device)
        separator = torch.zeros(n, 1, dtype=torch.long, device=device)
        return self.batch(torch.cat([x, separator], 1), x[:, self.order()])

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        return (output_map([(c,) for c in self.order()], self.prompt_len - 1, self.n_targets),)

    def loss_floor(self) -> float:
        """(n-1) ln(max_value) / 2n."""
        return (self.n - 1) * log(self.max_value) / self.n_targets

    def loss_plateau(self) -> float:
        """(2n-1) ln(max_value) / 2n: nothing of the answer is known."""
        return (2 * self.n - 1) * log(self.max_value) / self.n_targets

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join("|" if t == 0 else str(int(t)) for t in tokens)


@dataclass(frozen=True, kw_only=True)
class Reverse(Copy):
    """Repeat the prompt numbers backwards.

    >>> print(Reverse(n=5, max_value=9).example(seed=0))
    prompt  9 1 3 7 8 |
    answer  8 7 3 1 9
    """

    def order(self) -> list[int]:
        return list(range(self.n))[::-1]
