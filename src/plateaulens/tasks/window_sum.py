"""Moving-window sum, the main task of arXiv 2506.13688."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens._shapes import Batch
from plateaulens.tasks.base import Task, generator, output_map, require


@dataclass(frozen=True, kw_only=True)
class MovingWindowSum(Task):
    """Answer i is the sum of the last k prompt numbers up to i, modulo p; the first k-1 answers are copies.

    Prompt numbers are drawn from 1..p-1, the separator is token p. The copies are the partial
    solution: a model learns them at once and then sits on the plateau.

    >>> print(MovingWindowSum(n=6, k=2, p=7).example(seed=0))
    prompt  3 4 6 1 2 4 |
    answer  3 0 3 0 3 6

    Args:
        n: prompt numbers.
        k: window, 1 <= k <= n.
        p: modulus, at least 3.

    Raises:
        ValueError: for parameters outside these ranges.
    """

    n: int = 16
    k: int = 2
    p: int = 17

    def __post_init__(self) -> None:
        require(self.n >= 1, f"MovingWindowSum needs n >= 1 prompt numbers, got n={self.n}")
        require(1 <= self.k <= self.n, f"the window k must lie in 1..n={self.n}, got k={self.k}; use a smaller k")
        require(self.p >= 3, f"the modulus p must be at least 3 (numbers are 1..p-1), got p={self.p}")

    @property
    def prompt_len(self) -> int:
        return self.n + 1

    @property
    def n_out(self) -> int:
        return self.n

    @property
    def d_vocab(self) -> int:
        return self.p + 1

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        x = torch.randint(1, self.p, (n, self.n), generator=generator(seed, device), device=device)
        separator = torch.full((n, 1), self.p, device=device)
        return self.batch(torch.cat([x, separator], 1), self.answer(x))

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        """The true answers of prompt numbers `x`."""
        sums = x.unfold(1, self.k, 1).sum(-1) % self.p
        return torch.cat([x[:, : self.k - 1], sums], 1)

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        rows = [(r,) if r < self.k - 1 else tuple(range(r - self.k + 1, r + 1)) for r in range(self.n)]
        return (output_map(rows, self.prompt_len - 1, self.n_targets),)

    @property
    def partial_positions(self) -> tuple[int, ...]:
        return tuple(range(self.k - 1))

    def loss_floor(self) -> float:
        """(n-1) ln(p-1) / 2n: the random prompt numbers stay unpredictable."""
        return (self.n - 1) * log(self.p - 1) / self.n_targets

    def loss_plateau(self) -> float:
        """The floor plus, for each true window sum, the entropy of a sum of k numbers modulo p."""
        return self.loss_floor() + (self.n - self.k + 1) * self.sum_entropy() / self.n_targets

    def sum_entropy(self) -> float:
        """Entropy in nats of the sum of k uniform numbers from 1..p-1, modulo p, by exact convolution."""
        counts = [1] + [0] * (self.p - 1)
        for _ in range(self.k):
            counts = [sum(counts) - c for c in counts]  # every residue but the same one: x is never 0 mod p
        total = sum(counts)
        return -sum(c / total * log(c / total) for c in counts if c)

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join("|" if t == self.p else str(int(t)) for t in tokens)
