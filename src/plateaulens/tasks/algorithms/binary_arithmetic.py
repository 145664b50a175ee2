"""Binary addition, multiplication and majority of majorities (arXiv 2505.03997).

The paper draws a finite training set without replacement; here every batch is fresh, with independent fair bits.
"""

from dataclasses import dataclass
from math import comb, log

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.algorithms.string_task import FixedLengthTask, evenly_placed
from plateaulens.tasks.base import Feature, Published, check


@dataclass(frozen=True, kw_only=True)
class Binary(FixedLengthTask):
    """Base of the binary tasks, which share a vocabulary of five tokens.

    Attributes:
        bits: Number of bits of an operand, or of the whole input.
    """

    bits: int = 16
    symbols = "01+"  # pyright: ignore[reportAssignmentType]  # a constant property

    def __post_init__(self) -> None:
        check(self.bits >= 2, f"{type(self).__name__} needs at least two bits, got bits={self.bits}")

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        return torch.randint(2, (n, self.bits), generator=rng, device=rng.device)


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Binary):
    """Two operands of `bits` bits and their result, all with the least significant bit first.

    A subclass defines `n_answer`, `answer` and `priors`.
    """

    @property
    def n_ctx(self) -> int:
        return 2 * self.bits + 3 + self.n_answer

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        a, b = super().draw(2 * n, rng).chunk(2)
        return torch.cat([a, torch.full_like(a[:, :1], self.symbols.index("+")), b], 1)

    def operands(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Int[Tensor, "batch bits"], Int[Tensor, "batch bits"]]:
        """The bits of the operands a and b of inputs or of whole sequences."""
        return tokens[:, : self.bits], tokens[:, self.bits + 1 : 2 * self.bits + 1]

    def read_at(self, labels: Int[Tensor, "batch offset"], place: int, published: Published = "") -> Feature:
        """A feature whose offset r is read where bit place + r of the answer is predicted."""
        return evenly_placed(labels, 2 * self.bits + 1 + place, published=published)

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`first_operand`: bit r of a, where bit r of the answer is predicted."""
        return {"first_operand": self.read_at(self.operands(batch.tokens)[0], 0, "quiet")}

    def priors(self) -> list[float]:
        """Probability that each bit of the answer is 1."""
        raise NotImplementedError

    def loss_plateau(self) -> float:
        """Mean entropy of the answer's bits, each taken by itself, in nats."""
        return sum(map(bit_entropy, self.priors())) / self.n_out


@dataclass(frozen=True, kw_only=True)
class BinaryAddition(Arithmetic):
    """a + b in binary; the sum has one bit more than the numbers, and all have the least significant bit first.

    >>> print(BinaryAddition(bits=4).example(seed=1))
    prompt  1100+1111
    answer  =01001<EOS>

    Args:
        bits: Number of bits of each number.
        answer_only: Exclude `=` from the loss and from decoding.

    Raises:
        ValueError: unless bits >= 2.
    """

    @property
    def n_answer(self) -> int:
        return self.bits + 1

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        a, b = self.operands(inputs)
        return propagate_carries(F.pad(a + b, (0, 1)))

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`first_operand`, and `carry`: the carry out of column r, read where bit r + 1 of the sum is predicted."""
        a, b = self.operands(batch.tokens)
        carries = F.pad(a ^ b, (0, 1)) ^ self.answer(batch.tokens)  # into each column: what the operands do not explain
        return super().features(batch, released=released) | {"carry": self.read_at(carries[:, 1:], 1, "quiet")}

    def priors(self) -> list[float]:
        """One half for each bit but the last: a + b >= 2^bits is a little rarer."""
        return [0.5] * self.bits + [0.5 - 0.5 ** (self.bits + 1)]

    def published_chance(self) -> float:
        return (self.bits + 2) / (self.bits + 3) * log(2)  # the released code counts one bit too many


@dataclass(frozen=True, kw_only=True)
class Multiplication(Arithmetic):
    """a * b in binary; the product has twice the bits of the numbers, which as in the paper are separated by `+`.

    >>> print(Multiplication(bits=4).example(seed=1))
    prompt  1100+1111
    answer  =10110100<EOS>

    Args:
        bits: Number of bits of each number.
        answer_only: Exclude `=` from the loss and from decoding.

    Raises:
        ValueError: unless bits >= 2.
    """

    @property
    def n_answer(self) -> int:
        return 2 * self.bits

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        return propagate_carries(self.rows(inputs).sum(1))

    def rows(self, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch row answer"]:
        """Rows of long multiplication: row k is a shifted by k - 1 places, or zeros where bit k - 1 of b is 0."""
        a, b = self.operands(tokens)
        # Padded one column too wide: reshaped, each row is shifted by one more than the row before it.
        padded = F.pad(b[:, :, None] * a[:, None], (0, self.bits + 1))
        return padded.flatten(1)[:, : 2 * self.bits**2].unflatten(1, (self.bits, 2 * self.bits))

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`first_operand`, and `carry_k` for k = 2 .. `bits`, of which the paper shows the last.

        `carry_k` is the carry into column k + r as row k is added to the rows before it, read where bit k + r of the
        product is predicted. `released` adds `carry`: the last one, read as if k were 1.
        """
        rows = self.rows(batch.tokens)
        sums = propagate_carries(rows.cumsum(1))
        carries = rows[:, 1:] ^ sums[:, :-1] ^ sums[:, 1:]
        found = super().features(batch, released=released)
        for k in range(2, self.bits + 1):
            labels = carries[:, k - 2, k : k + self.bits]
            found[f"carry_{k}"] = self.read_at(labels, k, "quiet" if k == self.bits else "")
        return found | ({"carry": self.read_at(carries[:, -1, self.bits :], 1)} if released else {})

    def priors(self) -> list[float]:
        """By enumeration up to 10 bits; beyond, the same at both ends and 1/2 between, which gives the loss to 1e-4."""
        n = min(self.bits, 10)
        numbers = torch.arange(2**n)
        products = (numbers[:, None] * numbers).flatten()
        shares = [float((products >> place & 1).double().mean()) for place in range(2 * n)]
        return shares[:n] + [0.5] * 2 * (self.bits - n) + shares[n:]

    def published_chance(self) -> float:
        return self.bits / (self.bits + 1) * log(2)


@dataclass(frozen=True, kw_only=True)
class MajorityOfMajorities(Binary):
    """The majority of the majorities of groups of bits: 1 where more than half are 1.

    The paper's figures label 64 bits as "32".

    >>> print(MajorityOfMajorities(bits=16).example(seed=1))
    prompt  1100111110010110
    answer  =0<EOS>

    Args:
        bits: Number of bits of the input.
        groups: Number of equal groups; a divisor of bits.
        answer_only: Exclude `=` from the loss and from decoding.

    Raises:
        ValueError: unless bits divide into groups.
    """

    bits: int = 64
    groups: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.groups >= 1 and self.bits % self.groups == 0,
            f"bits={self.bits} do not divide into groups={self.groups} equal parts; use a divisor",
        )

    @property
    def n_answer(self) -> int:
        return 1

    @property
    def n_ctx(self) -> int:
        return self.bits + 3

    def group_majorities(self, bits: Int[Tensor, "batch bits"]) -> Int[Tensor, "batch group"]:
        """The majority of each group."""
        return majority(bits.unflatten(1, (self.groups, -1)))

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        return majority(self.group_majorities(inputs))[:, None]

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`group_vote` (not in the paper): the majority of each group, read at its last bit."""
        size = self.bits // self.groups
        return {"group_vote": evenly_placed(self.group_majorities(batch.tokens[:, : self.bits]), size - 1, size)}

    def loss_plateau(self) -> float:
        """Entropy of the answer per target, in nats."""
        p_group = majority_probability(self.bits // self.groups, 0.5)
        return bit_entropy(majority_probability(self.groups, p_group)) / self.n_out

    def published_chance(self) -> float:
        return log(2) / 3


def propagate_carries(columns: Int[Tensor, "*batch column"]) -> Int[Tensor, "*batch column"]:
    """The bits of a sum from the sum of each column; the carry out of the last column is dropped."""
    bits, carry = [], torch.zeros_like(columns[..., 0])
    for column in columns.unbind(-1):
        total = column + carry
        bits.append(total & 1)
        carry = total >> 1
    return torch.stack(bits, -1)


def majority(bits: Int[Tensor, "*batch voter"]) -> Int[Tensor, "*batch"]:
    """1 where more than half of the bits are 1, else 0."""
    return (2 * bits.sum(-1) > bits.shape[-1]).long()


def majority_probability(voters: int, p: float) -> float:
    """Probability that more than half of `voters` independent bits are 1, each with probability p."""
    return sum(comb(voters, k) * p**k * (1 - p) ** (voters - k) for k in range(voters // 2 + 1, voters + 1))


def bit_entropy(p: float) -> float:
    """Entropy in nats of a bit that is 1 with probability p."""
    return -sum(q * log(q) for q in (p, 1 - p) if q)
