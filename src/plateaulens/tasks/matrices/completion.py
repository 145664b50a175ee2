"""Matrix completion (arXiv 2410.22244): low-rank matrices with hidden cells, read row by row in one pass.

task = MatrixCompletion(rows=7, cols=7, rank=2)
batch = task.sample(256, seed=0)
task.loss(model(batch.inputs), batch)        # squared error of every cell, shown and hidden
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from math import comb
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.protocols import Metric
from plateaulens.tasks.base import Feature, Task, generator, require
from plateaulens.tasks.matrices.entries import MASK, Entries, Matrices, in_double
from plateaulens.tasks.matrices.metrics import METRICS


@dataclass(frozen=True, eq=False)
class MatrixBatch(Batch):
    """Whole matrices, row by row; the model is shown the cells that are not in `out`.

    Attributes:
        filler: the token that is shown in place of a hidden cell.
    """

    filler: int = MASK

    @property
    def observed(self) -> Bool[Tensor, "batch pos"]:
        """Which cells are shown."""
        hidden = torch.zeros_like(self.tokens).scatter_add(
            1, self.answer_positions.clamp(min=0), (self.answer_positions >= 0).long()
        )
        return hidden == 0

    @property
    def inputs(self) -> Int[Tensor, "batch pos"]:
        return self.tokens.where(self.observed, self.filler)

    @property
    def targets(self) -> Int[Tensor, "batch pos"]:
        return self.tokens

    @property
    def answers(self) -> Int[Tensor, "batch out"]:
        return self.tokens.gather(1, self.answer_positions.clamp(min=0)).masked_fill(self.answer_positions < 0, -1)

    @property
    def shared_prompt(self) -> Int[Tensor, "batch pos"]:
        return self.inputs

    @property
    def is_decoded(self) -> bool:
        return False

    @property
    def values(self) -> Float[Tensor, "batch pos"]:
        """The true entries, as rounded."""
        return self.task.value(self.tokens)

    def hiding(self, observed: Bool[Tensor, "#batch pos"]) -> "MatrixBatch":
        """The same matrices, of which other cells are shown."""
        return replace(
            self, answer_positions=hidden_cells(observed.to(self.answer_positions.device).expand(self.tokens.shape))
        )

    def negated(self) -> "MatrixBatch":
        """-X behind the same mask."""
        return replace(self, tokens=2 * (1 + self.task.levels) - self.tokens)


def hidden_cells(observed: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch out"]:
    """Positions of the cells that are not observed, in order, then -1."""
    order = observed.long().argsort(dim=1, stable=True)
    return order.masked_fill(observed.gather(1, order), -1)


class _InOnePass(Task):
    """Every cell is answered at its own position, by its value."""

    batch_type: ClassVar[type[Batch]] = MatrixBatch

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return tuple(METRICS)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return METRICS

    @property
    def n_targets(self) -> int:
        return self.n_ctx

    @property
    def n_out(self) -> int:
        return self.n_ctx

    @property
    def prompt_len(self) -> int:
        return self.n_ctx

    def loss(self, outputs: Float[Tensor, "batch pos"], batch: Batch) -> Float[Tensor, ""]:
        """Mean squared error over all cells of the batch, shown and hidden (arXiv 2410.22244)."""
        return F.mse_loss(outputs, batch.values)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class MatrixCompletion(_InOnePass, Matrices):
    """X = U V^T with some cells hidden: give every cell's value (arXiv 2410.22244).

    The partial solution copies what is shown and says 0 for what is hidden.

    >>> print(MatrixCompletion(rows=2, cols=3, rank=1, precision=0.1, limit=1.0).example(seed=3))
    shown     ? 0.9 0.1 | 0.3 0.7 0.0
    answer  0.4 0.9 0.1 | 0.3 0.7 0.0

    The arguments are those of `Matrices` and `Entries`.

    Raises:
        ValueError: for a size or share out of range, an unknown mask or distribution, or a mask that does not fit.
    """

    @property
    def n_ctx(self) -> int:
        return self.rows * self.cols

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> MatrixBatch:
        rng = generator(seed, device)
        tokens = self.token(self.entries(n, rng)).flatten(1)
        observed = self.shown(n, rng).flatten(1)
        return MatrixBatch(tokens, hidden_cells(observed), torch.ones_like(observed), self)

    def loss_plateau(self) -> float:
        """The share of hidden cells times the variance of an entry: what is shown is copied, the rest is 0."""
        return self.hidden_share * self.variance

    def loss_floor(self) -> float | None:
        """A lower bound, from cells whose row and column no chain of shown cells connects; None but for "random".

        The sign of such a cell is free, whatever the rank, so that nothing beats 0 there. Rounding is left out.
        """
        if self.rank is None:
            return self.loss_plateau()
        return self.variance * disconnected_share(self.rows, self.cols, self.p_mask) if self.mask == "random" else None

    def features(self, batch: Batch, released: bool = False) -> dict[str, Feature]:
        """What arXiv 2410.22244 probes for at every cell (fig. 6 and appendix), hidden cells included.

        "element" is the true entry, "row" the shown entries of the cell's row and 0 for the others, "svd" the first
        left singular vector of the whole matrix, its greatest entry (of equal ones the first) positive; of
        "svd_any_sign" the sign is what the solver gives, as in the released code.
        """
        assert isinstance(batch, MatrixBatch)
        size = (self.rows, self.cols)
        x = batch.values.unflatten(1, size)
        shown = batch.values.where(batch.observed, 0.0).unflatten(1, size)
        vectors = torch.linalg.svd(in_double(x))[0][..., 0]
        first = (vectors.abs() > vectors.abs().amax(1, keepdim=True) - 1e-9).long().argmax(1, keepdim=True)
        fixed = vectors * vectors.gather(1, first).sign()
        found = {
            "element": batch.values,
            "row": shown.repeat_interleave(self.cols, 1),
            "svd": fixed.to(x)[:, None].expand(-1, self.n_ctx, -1),
            "svd_any_sign": vectors.to(x)[:, None].expand(-1, self.n_ctx, -1),
        }
        positions = torch.arange(self.n_ctx, device=x.device).expand(len(batch), -1)
        return {name: Feature(labels, positions, "real") for name, labels in found.items()}

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return self.written(tokens)

    def example(self, seed: int = 0) -> str:
        batch = self.sample(1, seed=seed)
        return f"shown   {self.written(batch.inputs[0])}\nanswer  {self.written(batch.tokens[0])}"


@cache
def disconnected_share(rows: int, cols: int, p_mask: float) -> float:
    """Probability that no chain of shown cells connects a cell's row with its column, itself hidden included.

    Exact: the bipartite graph of the shown cells, summed over the component that the cell's row is in.
    """
    connected: dict[tuple[int, int], float] = {}

    def component(a: int, b: int, i: int, j: int) -> float:
        """Probability that i given rows and j given columns are a component of a x b."""
        return connected[i, j] * p_mask ** (i * (b - j) + j * (a - i))

    for a in range(1, rows + 1):
        for b in range(cols + 1):
            smaller = ((i, j) for i in range(1, a + 1) for j in range(b + 1) if (i, j) != (a, b))
            connected[a, b] = 1 - sum(comb(a - 1, i - 1) * comb(b, j) * component(a, b, i, j) for i, j in smaller)
    without = ((i, j) for i in range(1, rows + 1) for j in range(cols))
    return sum(comb(rows - 1, i - 1) * comb(cols - 1, j) * component(rows, cols, i, j) for i, j in without)


@dataclass(frozen=True, kw_only=True)
class MatrixMixture(_InOnePass, Entries):
    """Square matrices of several sizes; each batch is of one size, drawn anew (arXiv 2410.22244).

    So is a evaluation batch: a recording has the losses of one size. Those of each are of `task.of(order).sample(...)`.

    Args:
        orders: Numbers of rows, and of columns, of the sizes.

    Raises:
        ValueError: as of `MatrixCompletion`, or for no size.
    """

    rank: int | None = 1
    orders: tuple[int, ...] = (5, 7, 9)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.orders) > 0, "a mixture needs at least one order")
        self.of(min(self.orders))

    def of(self, order: int) -> MatrixCompletion:
        """The task of one size."""
        return MatrixCompletion(rows=order, cols=order, **{f.name: getattr(self, f.name) for f in fields(Entries)})

    @property
    def n_ctx(self) -> int:
        return max(self.orders) ** 2

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> MatrixBatch:
        rng = generator(seed, device)
        which = int(torch.randint(len(self.orders), (), generator=rng, device=rng.device))
        return self.of(self.orders[which]).sample(n, seed=rng)

    def loss_plateau(self) -> float:
        """The mean over the sizes."""
        return sum(self.of(order).loss_plateau() for order in self.orders) / len(self.orders)

    def example(self, seed: int = 0) -> str:
        return self.of(min(self.orders)).example(seed)


@dataclass(frozen=True, kw_only=True)
class MatrixSequence(Matrices):
    """The same for a decoder: the matrix with hidden cells, a separator, the whole matrix (arXiv 2410.22244, app. G).

    Every next-token target is scored, also those of the first matrix, which cannot be known. No measurement is of the
    answers to shown cells alone, which in the paper are learned first.

    Args:
        limit: Largest magnitude of an entry that has a token, a multiple of `precision`; 2 in the paper.
    """

    limit: float | int = 2.0

    @property
    def d_vocab(self) -> int:
        """Values, MASK and the separator."""
        return super().d_vocab + 1

    @property
    def prompt_len(self) -> int:
        return self.rows * self.cols + 1

    @property
    def n_out(self) -> int:
        return self.rows * self.cols

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        rng = generator(seed, device)
        tokens = self.token(self.entries(n, rng)).flatten(1)
        seen = tokens.where(self.shown(n, rng).flatten(1), MASK)
        separator = torch.full_like(tokens[:, :1], self.d_vocab - 1)
        return self.batch(torch.cat([seen, separator], 1), tokens)

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        n = self.n_out
        return "  =>  ".join(self.written(part) for part in (tokens[:n], tokens[n + 1 :]) if len(part))
