"""Moving-window sums, the main tasks of arXiv 2506.13688."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.tasks.base import check, output_map
from plateaulens.tasks.sequences.number_task import ModularTask


@dataclass(frozen=True, kw_only=True)
class MovingWindowSum(ModularTask):
    """Answer i is the sum of the last k prompt numbers up to i, modulo p; the first k-1 answers are copies.

    Prompt numbers are drawn from 1..p-1, and the separator is token p. The copies are the partial solution: a model
    learns them first, and its loss then stays on the plateau.

    >>> print(MovingWindowSum(n=6, k=2, p=7).example(seed=0))
    prompt  3 4 6 1 2 4 |
    answer  3 0 3 0 3 6

    Args:
        n: Number of prompt numbers.
        p: Modulus, at least 3; prompt numbers are drawn from 1..p-1.
        k: Width of the window, 1 <= k <= n.

    Raises:
        ValueError: for parameters outside these ranges.
    """

    k: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.k <= self.n, f"the window k must lie in 1..n={self.n}, got k={self.k}; use a smaller k")

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        sums = x.unfold(1, self.k, 1).sum(-1) % self.p
        return torch.cat([x[:, : self.k - 1], sums], 1)

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        rows = [(r,) if r < self.k - 1 else tuple(range(r - self.k + 1, r + 1)) for r in range(self.n)]
        return (output_map(rows, self.prompt_len - 1, self.n_targets),)

    @property
    def partial_positions(self) -> tuple[int, ...]:
        return tuple(range(self.k - 1))

    def loss_plateau(self) -> float:
        """Loss floor plus the entropy of a sum of k numbers modulo p for each true window sum, in nats."""
        return self.loss_floor() + (self.n - self.k + 1) * self.sum_entropy(self.k) / self.n_targets


# Segments (k, first, last) of the paper's mixes: window sums of k numbers that start at first..last (1-based).
MIXES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "123_disjoint_454": ((1, 1, 4), (2, 5, 9), (3, 11, 14)),
    "124_stair_653": ((1, 1, 6), (2, 1, 5), (4, 1, 3)),
    "124_disjoint_444": ((1, 1, 4), (2, 5, 8), (4, 10, 13)),
    "124_disjoint_453": ((1, 1, 4), (2, 5, 9), (4, 11, 13)),
}


@dataclass(frozen=True, kw_only=True)
class WindowMix(ModularTask):
    """Window sums of several widths, one segment after another (arXiv 2506.13688, fig. 19).

    The copies (width 1) are the partial solution; wider segments are expected to be learned one after another.

    >>> print(WindowMix(n=6, p=7, mix=((1, 1, 2), (3, 3, 4))).example(seed=0))
    prompt  3 4 6 1 2 4 |
    answer  3 4 2 0

    Args:
        n: Number of prompt numbers.
        p: Modulus, at least 3; prompt numbers are drawn from 1..p-1.
        mix: Name of one of the paper's layouts, such as 123_disjoint_454, or segments (k, first, last): the sums of k
            numbers that start at prompt numbers first..last, counted from 1.

    Raises:
        ValueError: for an unknown name, or a segment that leaves the prompt.
    """

    mix: str | tuple[tuple[int, int, int], ...] = "123_disjoint_454"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            len(self.segments) > 0 and all(len(segment) == 3 for segment in self.segments),
            f"a mix needs at least one segment, and each is (k, first, last); got {self.mix}",
        )
        for k, first, last in self.segments:
            check(
                k >= 1 and 1 <= first <= last and last + k - 1 <= self.n,
                f"segment (k={k}, first={first}, last={last}) leaves the prompt of n={self.n} numbers; "
                "it needs k >= 1 and 1 <= first <= last <= n-k+1",
            )

    @property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """(k, first, last) of each segment."""
        return look_up("mix", self.mix, MIXES) if isinstance(self.mix, str) else self.mix

    @property
    def windows(self) -> list[range]:
        """The prompt positions that each answer sums."""
        return [range(start - 1, start - 1 + k) for k, first, last in self.segments for start in range(first, last + 1)]

    @property
    def n_out(self) -> int:
        return len(self.windows)

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        sums = [x.unfold(1, k, 1).sum(-1)[:, first - 1 : last] for k, first, last in self.segments]
        return torch.cat(sums, 1) % self.p

    def optimal_attention(self, batch: Batch | None = None) -> tuple[Bool[Tensor, "1 query key"]]:
        """Each answer attends to its window (the paper defines no map for the mixes)."""
        return (output_map([tuple(w) for w in self.windows], self.prompt_len - 1, self.n_targets),)

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return (*super().default_metrics, "part_accuracy", "part_collapse")

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        ends = [0]
        for _, first, last in self.segments:
            ends.append(ends[-1] + last - first + 1)
        return {
            f"segment {i + 1}, k={k}": tuple(range(ends[i], ends[i + 1])) for i, (k, _, _) in enumerate(self.segments)
        }

    @property
    def partial_positions(self) -> tuple[int, ...]:
        return tuple(i for i, window in enumerate(self.windows) if len(window) == 1)

    def loss_plateau(self) -> float:
        """Loss floor plus the entropy of every answer that sums more than one number, in nats."""
        unknown = sum(self.sum_entropy(len(window)) for window in self.windows if len(window) > 1)
        return self.loss_floor() + unknown / self.n_targets
