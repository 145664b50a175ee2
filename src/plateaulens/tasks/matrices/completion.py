"""Matrix completion (arXiv 2410.22244): low-rank matrices with hidden cells, predicted in one pass.

task = MatrixCompletion(rows=7, cols=7, rank=2)
batch = task.sample(256, seed=0)
task.loss(model(batch.inputs), batch)        # squared error over all cells
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
from plateaulens.tasks.base import Feature, Task, check, generator
from plateaulens.tasks.matrices.entries import MASK, MatrixEntries, MatrixTask, to_float64
from plateaulens.tasks.matrices.metrics import METRICS


@dataclass(frozen=True, eq=False)
class MatrixBatch(Batch):
    """Whole matrices as sequences of cells, row by row; the cells at `answer_positions` are hidden from the model.

    Attributes:
        filler: Token of the input in place of a hidden cell.
    """

    filler: int = MASK

    @property
    def observed(self) -> Bool[Tensor, "batch pos"]:
        """Which cells the model observes."""
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
        """The true entries, rounded."""
        return self.task.value(self.tokens)

    def with_observed(self, observed: Bool[Tensor, "#batch pos"]) -> "MatrixBatch":
        """The same matrices with other observed cells."""
        return replace(
            self, answer_positions=hidden_cells(observed.to(self.answer_positions.device).expand(self.tokens.shape))
        )

    def negated(self) -> "MatrixBatch":
        """The matrices -X with the same mask."""
        return replace(self, tokens=2 * (1 + self.task.levels) - self.tokens)


def hidden_cells(observed: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch out"]:
    """Positions of the hidden cells in order, padded with -1."""
    order = observed.long().argsort(dim=1, stable=True)
    return order.masked_fill(observed.gather(1, order), -1)


class _OnePassTask(Task):
    """Base of tasks in which one pass predicts the value of every cell at its own position."""

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
        """Mean squared error over all cells of the batch, observed and hidden (arXiv 2410.22244)."""
        return F.mse_loss(outputs, batch.values)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class MatrixCompletion(_OnePassTask, MatrixTask):
    """The value of every cell of X = U V^T, of which some cells are hidden (arXiv 2410.22244).

    The partial solution copies observed cells and predicts 0 for hidden ones.

    >>> print(MatrixCompletion(rows=2, cols=3, rank=1, precision=0.1, limit=1.0).example(seed=3))
    shown     ? 0.9 0.1 | 0.3 0.7 0.0
    answer  0.4 0.9 0.1 | 0.3 0.7 0.0

    The arguments are those of `MatrixTask` and `MatrixEntries`.

    Raises:
        ValueError: for a size or share out of range, an unknown mask or distribution, or a mask that does not fit.
    """

    @property
    def n_ctx(self) -> int:
        return self.rows * self.cols

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> MatrixBatch:
        rng = generator(seed, device)
        tokens = self.token(self.entries(n, rng)).flatten(1)
        observed = self.observed_cells(n, rng).flatten(1)
        return MatrixBatch(tokens, hidden_cells(observed), torch.ones_like(observed), self)

    def loss_plateau(self) -> float:
        """Loss of the partial solution: the share of hidden cells times the variance of an entry."""
        return self.hidden_share * self.variance

    def loss_floor(self) -> float | None:
        """A lower bound of the loss without rounding, or None for masks other than "random".

        It comes from the cells whose row and column no chain of observed cells connects: the sign of such a cell is
        undetermined at any rank, so that 0 is the best prediction.
        """
        if self.rank is None:
            return self.loss_plateau()
        return self.variance * disconnected_share(self.rows, self.cols, self.p_mask) if self.mask == "random" else None

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """The quantities that arXiv 2410.22244 probes at every cell, hidden ones included (fig. 6 and appendix).

        "element" is the true entry, "row" the observed entries of the cell's row and 0 for the others, "svd" the first
        left singular vector of the whole matrix, with its largest entry (the first of equal ones) positive.
        "svd_any_sign" has the sign that the solver returns, as in the released code.
        """
        assert isinstance(batch, MatrixBatch)
        size = (self.rows, self.cols)
        x = batch.values.unflatten(1, size)
        observed = batch.values.where(batch.observed, 0.0).unflatten(1, size)
        vectors = torch.linalg.svd(to_float64(x))[0][..., 0]
        largest = (vectors.abs() > vectors.abs().amax(1, keepdim=True) - 1e-9).long().argmax(1, keepdim=True)
        with_fixed_sign = vectors * vectors.gather(1, largest).sign()
        labels_by_name = {
            "element": batch.values,
            "row": observed.repeat_interleave(self.cols, 1),
            "svd": with_fixed_sign.to(x)[:, None].expand(-1, self.n_ctx, -1),
            "svd_any_sign": vectors.to(x)[:, None].expand(-1, self.n_ctx, -1),
        }
        positions = torch.arange(self.n_ctx, device=x.device).expand(len(batch), -1)
        return {name: Feature(labels, positions, "real") for name, labels in labels_by_name.items()}

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return self.format_cells(tokens)

    def example(self, seed: int = 0) -> str:
        batch = self.sample(1, seed=seed)
        return f"shown   {self.format_cells(batch.inputs[0])}\nanswer  {self.format_cells(batch.tokens[0])}"


@cache
def disconnected_share(rows: int, cols: int, p_mask: float) -> float:
    """Exact probability that a cell is hidden and no chain of observed cells connects its row with its column.

    Computed on the bipartite graph of observed cells, as a sum over the connected component of the cell's row.
    """
    connected: dict[tuple[int, int], float] = {}

    def component(a: int, b: int, i: int, j: int) -> float:
        """Probability that i given rows and j given columns are a connected component of an a x b matrix."""
        return connected[i, j] * p_mask ** (i * (b - j) + j * (a - i))

    for a in range(1, rows + 1):
        for b in range(cols + 1):
            smaller = ((i, j) for i in range(1, a + 1) for j in range(b + 1) if (i, j) != (a, b))
            connected[a, b] = 1 - sum(comb(a - 1, i - 1) * comb(b, j) * component(a, b, i, j) for i, j in smaller)
    without_column = ((i, j) for i in range(1, rows + 1) for j in range(cols))
    return sum(comb(rows - 1, i - 1) * comb(cols - 1, j) * component(rows, cols, i, j) for i, j in without_column)


@dataclass(frozen=True, kw_only=True)
class MatrixMixture(_OnePassTask, MatrixEntries):
    """Completion of square matrices of several sizes; every batch has one size, drawn at random (arXiv 2410.22244).

    An evaluation batch also has one size; `task.with_order(order).sample(...)` draws matrices of a given size.

    Args:
        orders: Sizes: numbers of rows, equal to those of columns.

    Raises:
        ValueError: If there is no size, or an argument is invalid for `MatrixCompletion`.
    """

    rank: int | None = 1
    orders: tuple[int, ...] = (5, 7, 9)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.orders) > 0, "a mixture needs at least one order")
        self.with_order(min(self.orders))

    def with_order(self, order: int) -> MatrixCompletion:
        """The task with matrices of one size."""
        return MatrixCompletion(
            rows=order, cols=order, **{f.name: getattr(self, f.name) for f in fields(MatrixEntries)}
        )

    @property
    def n_ctx(self) -> int:
        return max(self.orders) ** 2

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> MatrixBatch:
        rng = generator(seed, device)
        which = int(torch.randint(len(self.orders), (), generator=rng, device=rng.device))
        return self.with_order(self.orders[which]).sample(n, seed=rng)

    def loss_plateau(self) -> float:
        """Mean of the plateau losses over the sizes."""
        return sum(self.with_order(order).loss_plateau() for order in self.orders) / len(self.orders)

    def example(self, seed: int = 0) -> str:
        return self.with_order(min(self.orders)).example(seed)


@dataclass(frozen=True, kw_only=True)
class MatrixSequence(MatrixTask):
    """Completion by a decoder: the matrix with hidden cells, a separator, the whole matrix (arXiv 2410.22244, app. G).

    The loss counts every next-token target, also those of the first matrix, which cannot be predicted. There is no
    metric of the answers to observed cells alone, which in the paper are learned first.

    Args:
        limit: Largest magnitude of an entry that has a token, a multiple of `precision`; 2 in the paper.
    """

    limit: float | int = 2.0

    @property
    def d_vocab(self) -> int:
        """Number of values, plus MASK and the separator."""
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
        observed = tokens.where(self.observed_cells(n, rng).flatten(1), MASK)
        separator = torch.full_like(tokens[:, :1], self.d_vocab - 1)
        return self.batch(torch.cat([observed, separator], 1), tokens)

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        n = self.n_out
        return "  =>  ".join(self.format_cells(part) for part in (tokens[:n], tokens[n + 1 :]) if len(part))
