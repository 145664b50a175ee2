"""Bases of the matrix tasks: distributions of entries, rounding to tokens, masks of hidden cells."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.tasks.base import Task, check, generator

MASK = 0  # the token of a hidden cell
MIN_MAGNITUDE = 0.5  # smallest magnitude of "bounded" factors, as a share of the largest


def _uniform(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=rng, device=rng.device) - 1


def _laplace(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    u = _uniform(shape, rng)
    return -u.sign() * torch.log1p(-u.abs().clamp(max=1 - 2**-24))  # u may be -1, where the logarithm is infinite


def _bounded(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    u = _uniform(shape, rng)
    return _sign(u) * (MIN_MAGNITUDE + (1 - MIN_MAGNITUDE) * u.abs())


def _sign(u: Tensor) -> Tensor:
    """-1 or 1; 1 for 0, unlike `torch.sign`."""
    return torch.where(u < 0, -1.0, 1.0)


# Distributions of the factors U and V at scale 1: a function that draws, and the variance.
FACTORS: dict[str, tuple[Callable[[tuple[int, ...], torch.Generator], Tensor], float]] = {
    "uniform": (_uniform, 1 / 3),
    "gaussian": (lambda shape, rng: torch.randn(shape, generator=rng, device=rng.device), 1.0),
    "laplace": (_laplace, 2.0),
    "signs": (lambda shape, rng: _sign(_uniform(shape, rng)), 1.0),
    "bounded": (_bounded, (1 + MIN_MAGNITUDE + MIN_MAGNITUDE**2) / 3),
}
# Masks, with the smallest numbers of rows and columns that they need: "row" hides two rows but for a cell of each.
MASKS = {"random": (1, 1), "row": (3, 2), "column": (2, 3), "block": (2, 2)}


@dataclass(frozen=True, kw_only=True)
class MatrixEntries(Task):
    """Base of the matrix tasks of any size: distribution of the entries, their tokens, and the mask.

    Args:
        rank: Number of columns of U and of V; None draws each entry independently from the distribution of the factors.
        p_mask: Probability that a cell is hidden (mask "random"), or approximately the hidden share (mask "block").
        mask: Hidden cells: "random", or the same in every matrix: "row" hides two rows but for one cell of each (in
            7 x 7 the cells of the paper; at least three rows), "column" the same of columns, "block" the lower right
            corner.
        factors: Distribution of U and V: "uniform" on [-scale, scale], "gaussian" (standard deviation `scale`),
            "laplace" (scale parameter `scale`), "signs" (-scale or scale), "bounded" (magnitude in [scale/2, scale]).
        scale: Scale of the factors.
        precision: Step to which entries are rounded, as input and as target.
        limit: Largest magnitude of an entry that has a token, a multiple of `precision`.
    """

    rank: int | None = 2
    p_mask: float = 0.3
    mask: str = "random"
    factors: str = "uniform"
    scale: float | int = 1.0
    precision: float = 0.01
    limit: float | int = 10.0

    def __post_init__(self) -> None:
        look_up("mask", self.mask, MASKS)
        look_up("factors", self.factors, FACTORS)
        check(
            self.rank is None or self.rank >= 1,
            f"rank must be at least 1, or None for independent entries; got {self.rank}",
        )
        check(0 < self.p_mask < 1, f"p_mask must lie between 0 and 1, got {self.p_mask}")
        check(
            0 < self.precision <= self.limit and isfinite(self.limit / self.precision) and 0 < self.scale < inf,
            "scale must be above 0, precision between 0 and limit, and scale and limit / precision finite; "
            f"got scale={self.scale}, precision={self.precision}, limit={self.limit}",
        )
        check(
            abs(self.levels * self.precision - self.limit) < 1e-6 * self.precision,
            f"limit must be a multiple of precision, got limit={self.limit}, precision={self.precision}",
        )

    @property
    def levels(self) -> int:
        """Number of token values above zero."""
        return round(self.limit / self.precision)

    @property
    def d_vocab(self) -> int:
        """Number of rounded values from -limit to limit, plus MASK."""
        return 2 * self.levels + 2

    @property
    def variance(self) -> float:
        """Variance of an entry before rounding; its mean is 0."""
        of_factor = FACTORS[self.factors][1] * self.scale**2
        return of_factor if self.rank is None else self.rank * of_factor**2

    def token(self, value: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The token of the multiple of `precision` nearest to each value; values are clipped at `limit`."""
        level = (to_float64(value) / self.precision).round().long()
        return (1 + self.levels + level.clamp(-self.levels, self.levels)).to(value.device)

    def value(self, token: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The value of each token."""
        return (to_float64(token - 1 - self.levels) * self.precision).float().to(token.device)


def to_float64(x: Tensor) -> Tensor:
    """`x` in float64, in which ties round exactly; on the CPU if the device has no float64 (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@dataclass(frozen=True, kw_only=True)
class MatrixTask(MatrixEntries):
    """Base of the matrix tasks with one size.

    Args:
        rows: Number of rows.
        cols: Number of columns.
    """

    rows: int = 7
    cols: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, cols = MASKS[self.mask]
        check(
            self.rows >= rows and self.cols >= cols,
            f"mask {self.mask!r} needs at least {rows} rows and {cols} columns, got {self.rows} x {self.cols}",
        )
        check(
            self.mask != "block" or self.hidden_share < 1,
            f"a block of p_mask={self.p_mask} hides all of {self.rows} x {self.cols} cells; choose a smaller p_mask",
        )

    def entries(self, n: int, rng: torch.Generator) -> Float[Tensor, "n row col"]:
        """`n` random matrices, before rounding."""
        draw = FACTORS[self.factors][0]
        if self.rank is None:
            return self.scale * draw((n, self.rows, self.cols), rng)
        u, v = draw((n, self.rows, self.rank), rng), draw((n, self.cols, self.rank), rng)
        return self.scale**2 * (u @ v.mT)

    def observed_cells(self, n: int, rng: torch.Generator) -> Bool[Tensor, "n row col"]:
        """Which cells of `n` matrices are observed, according to `mask`."""
        size = (self.rows, self.cols)
        if self.mask == "random":
            return torch.rand((n, *size), generator=rng, device=rng.device) > self.p_mask
        observed = torch.ones(size, dtype=torch.bool, device=rng.device)
        if self.mask == "block":
            height, width = (max(1, round(side * sqrt(self.p_mask))) for side in size)
            observed[-height:, -width:] = False
        else:
            lines = observed if self.mask == "row" else observed.mT
            for line, kept in ((len(lines) // 2, 1), (-1, -2)):
                lines[line] = False
                lines[line, kept] = True
        return observed.expand(n, -1, -1)

    @property
    def hidden_share(self) -> float:
        """Expected share of hidden cells."""
        return (
            self.p_mask
            if self.mask == "random"
            else 1 - float(self.observed_cells(1, generator(0, "cpu")).float().mean())
        )

    def format_cells(self, tokens: Int[Tensor, " cell"]) -> str:
        """Cells as readable text, with `|` between rows and `?` for a hidden cell."""
        digits = len(f"{self.precision:g}".partition(".")[2])
        cells = ["?" if t == MASK else f"{v:.{digits}f}" for t, v in zip(tokens, self.value(tokens), strict=True)]
        width = max(map(len, cells))
        lines = [cells[i : i + self.cols] for i in range(0, len(cells), self.cols)]
        return " | ".join(" ".join(cell.rjust(width) for cell in line) for line in lines)
