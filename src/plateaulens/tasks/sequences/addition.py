"""Addition of n-digit numbers (arXiv 2506.13688, figs 9 and 10)."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import Task, check, generator, output_map

PLUS, EQUALS = 10, 11


@dataclass(frozen=True, kw_only=True)
class Addition(Task):
    """a + b of two numbers from 1..10^n-1, zero-padded; the answer starts with its last digit.

    The final carry is the partial solution: on the plateau it is predicted better than the digits.

    >>> print(Addition(n=3).example(seed=1))
    prompt  7 3 4 + 3 0 3 =
    answer  7 3 0 1
    >>> print(Addition(n=3, reverse=False).example(seed=1))
    prompt  7 3 4 + 3 0 3 =
    answer  1 0 3 7

    Args:
        n: Number of digits of each number, at most 18 (64-bit integers).
        reverse: Write the answer with the least significant digit first, as in the paper; otherwise last.

    Raises:
        ValueError: unless 1 <= n <= 18.
    """

    n: int = 4
    reverse: bool = True

    def __post_init__(self) -> None:
        check(1 <= self.n <= 18, f"Addition needs 1 to 18 digits, got n={self.n}")

    @property
    def prompt_len(self) -> int:
        return 2 * self.n + 2

    @property
    def n_out(self) -> int:
        return self.n + 1

    @property
    def d_vocab(self) -> int:
        return 12

    @property
    def answer_values(self) -> range:
        return range(10)

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        rng = generator(seed, device)
        a, b = torch.randint(1, 10**self.n, (2, n, 1), generator=rng, device=rng.device)
        plus, equals = (torch.full_like(a, token) for token in (PLUS, EQUALS))
        answer = digits(a + b, self.n + 1)
        prompt = torch.cat([digits(a, self.n), plus, digits(b, self.n), equals], 1)
        return self.batch(prompt, answer.flip(1) if self.reverse else answer)

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        """The digit pairs that each answer needs.

        Reversed answers need their own pair of digits and the pair before it, which with the digit just written gives
        the carry; the final carry needs the leading pair. Otherwise (not in the paper, which only reverses) an answer
        needs its own pair and all less significant ones.
        """
        rows = []
        for place in self.places:
            if self.reverse:
                needed = [min(place, self.n - 1)] + [place - 1] * (0 < place < self.n)
            else:
                needed = list(range(min(place, self.n - 1) + 1))
            rows.append(tuple(key for o in needed for key in (self.n - 1 - o, 2 * self.n - o)))
        return (output_map(rows, self.prompt_len - 1, self.n_targets),)

    @property
    def places(self) -> range:
        """Exponent of the power of ten of each answer digit."""
        return range(self.n + 1) if self.reverse else range(self.n, -1, -1)

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return (*super().default_metrics, "part_accuracy")

    @property
    def partial_positions(self) -> tuple[int, ...]:
        return (self.n if self.reverse else 0,)

    def loss_floor(self) -> float:
        """Entropy of b and of a after its first digit, divided by the 3n+2 targets, in nats."""
        numbers, with_digit = 10**self.n - 1, 10 ** (self.n - 1)
        counts = [with_digit - 1] + [with_digit] * 9  # numbers that begin with each digit
        rest = sum(count / numbers * log(count) for count in counts if count)  # H(a | its first digit)
        return (log(numbers) + rest) / self.n_targets

    def loss_plateau(self) -> float:
        """Loss floor plus the entropy of every digit of the sum except the final carry, in nats.

        A digit of a+b is uniform when a and b run over 0..10^n-1; taking the zeros out leaves
        N^2/10 - N/5 + [digit = 0] of (N-1)^2 pairs.
        """
        count = 10**self.n
        shares = [(count * count // 10 - count // 5 + (d == 0)) / (count - 1) ** 2 for d in range(10)]
        return self.loss_floor() + self.n * -sum(p * log(p) for p in shares if p) / self.n_targets

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join({PLUS: "+", EQUALS: "="}.get(int(t), str(int(t))) for t in tokens)


def digits(numbers: Int[Tensor, "batch 1"], count: int) -> Int[Tensor, "batch count"]:
    """The last `count` decimal digits of each number, most significant first."""
    powers = torch.tensor([10**i for i in range(count - 1, -1, -1)], device=numbers.device)
    return numbers // powers % 10
