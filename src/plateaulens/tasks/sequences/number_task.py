"""Bases of the sequence tasks: `NumberTask` and `ModularTask`."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import Task, check, generator


@dataclass(frozen=True, kw_only=True)
class NumberTask(Task):
    """Base of tasks with `n` prompt numbers, a separator and an answer to each, as most of arXiv 2506.13688.

    A subclass defines `values` (the possible prompt numbers), `separator`, `d_vocab` and `answer`.

    Args:
        n: Number of prompt numbers.
    """

    n: int = 16

    def __post_init__(self) -> None:
        check(self.n >= 1, f"{type(self).__name__} needs n >= 1 prompt numbers, got n={self.n}")

    @property
    def values(self) -> range:
        """The possible prompt numbers."""
        raise NotImplementedError

    @property
    def separator(self) -> int:
        """The token between prompt and answer."""
        raise NotImplementedError

    @property
    def prompt_len(self) -> int:
        return self.n + 1

    @property
    def n_out(self) -> int:
        return self.n

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch n"]:
        """Independent uniform prompt numbers of `n` examples."""
        return torch.randint(self.values.start, self.values.stop, (n, self.n), generator=rng, device=rng.device)

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        """The true answers to prompt numbers `x`."""
        raise NotImplementedError

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        x = self.draw(n, generator(seed, device))
        separator = torch.full((n, 1), self.separator, device=x.device)
        return self.batch(torch.cat([x, separator], 1), self.answer(x))

    def loss_floor(self) -> float:
        """Entropy of the prompt numbers after the first, (n-1) ln |values| / targets, in nats."""
        return (self.n - 1) * log(len(self.values)) / self.n_targets

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join("|" if t == self.separator else str(int(t)) for t in tokens)


@dataclass(frozen=True, kw_only=True)
class ModularTask(NumberTask):
    """Base of tasks with prompt numbers 1..p-1, answers modulo p, and token p as the separator.

    Args:
        n: Number of prompt numbers.
        p: Modulus, at least 3; prompt numbers are drawn from 1..p-1.

    Raises:
        ValueError: unless n >= 1 and p >= 3.
    """

    p: int = 17

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.p >= 3, f"the modulus p must be at least 3 (numbers are 1..p-1), got p={self.p}")

    @property
    def values(self) -> range:
        return range(1, self.p)

    @property
    def separator(self) -> int:
        return self.p

    @property
    def d_vocab(self) -> int:
        return self.p + 1

    def sum_entropy(self, k: int) -> float:
        """Entropy in nats of the sum modulo p of k uniform numbers from 1..p-1, by exact convolution."""
        counts = [1] + [0] * (self.p - 1)
        for _ in range(k):
            counts = [sum(counts) - c for c in counts]  # any residue but c itself, as x is never 0 modulo p
        total = sum(counts)
        return -sum(c / total * log(c / total) for c in counts if c)
