"""Tables of docs/nuclear_norm.md; takes minutes on one core.

    python -m plateaulens.papers.matrix_completion.nuclear_norm_tables --n 2048

Each number has its standard error; in brackets an earlier result by Douglas-Rachford splitting and FISTA on 96 to 256
other matrices, and the difference in standard errors of both, taking that of 128 matrices for the earlier one.
"""

import argparse
import sys
from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from plateaulens.papers.matrix_completion.cells import disconnected
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.tasks import MatrixCompletion
from plateaulens.tasks.matrices.completion import disconnected_share

P_MASKS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
# Earlier results by p_mask: L, L_mask, nuclear norms of the completed and of the true matrices.
BY_P_MASK = {
    0.1: (0.0011, 0.0115, 4.39, 4.41),
    0.2: (0.0037, 0.019, 4.31, 4.37),
    0.3: (0.012, 0.039, 4.28, 4.43),
    0.4: (0.030, 0.073, 4.05, 4.37),
    0.5: (0.052, 0.106, 3.87, 4.40),
    0.6: (0.090, 0.148, 3.48, 4.35),
}
# Fields of the task that differ, and earlier L and L_mask.
BY_TASK: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "7x7 rank 1": (dict(rank=1), (0.0012, 0.0039)),
    "7x7 rank 3": (dict(rank=3), (0.0397, 0.133)),
    "7x7 rank 4": (dict(rank=4), (0.0811, 0.272)),
    "10x10 rank 3": (dict(rows=10, cols=10, rank=3), (0.0117, 0.040)),
    "5x5 rank 1": (dict(rows=5, cols=5, rank=1), (0.0054, 0.018)),
    "5x7 rank 2": (dict(rows=5), (0.0153, 0.053)),
    "9x7 rank 2": (dict(rows=9), (0.0069, 0.023)),
    "Gaussian(.5) rank 2": (dict(factors="gaussian", scale=0.5), (0.0103, 0.034)),
    "Laplace(.25) rank 2": (dict(factors="laplace", scale=0.25), (0.0041, 0.0136)),
    "4x4 rank 1": (dict(rows=4, cols=4, rank=1), (0.0073, 0.024)),
}
# Earlier results by penalty: L_obs, L_mask, L.
BY_PENALTY = {
    5e-4: (1.0e-5, 0.0334, 0.0100),
    1e-3: (3.7e-5, 0.0336, 0.0101),
    1.5e-3: (None, None, None),
    1.75e-3: (None, None, None),
    2e-3: (1.4e-4, 0.0341, 0.0103),
    5e-3: (7.8e-4, 0.0372, 0.0117),
    1e-2: (2.9e-3, 0.0441, 0.0152),
}


# Earlier shares of disconnected cells among masked ones, by number of rows and columns.
BY_SIDE = {4: 0.067, 5: 0.019, 6: 0.005, 7: 0.0016}


def sample(n: int, **fields: Any) -> tuple[Tensor, Tensor]:
    """Matrices [n row col] of a `MatrixCompletion` with these fields, and which cells are observed."""
    task = MatrixCompletion(**fields)
    batch = task.sample(n, seed=0)
    return batch.values.view(n, task.rows, task.cols), batch.observed.view(n, task.rows, task.cols)


def mean(values: Tensor, cells: Tensor | None = None) -> tuple[float, float]:
    """Mean over the chosen cells of all matrices, and its standard error as a ratio of sums over matrices."""
    chosen = torch.ones_like(values, dtype=torch.bool) if cells is None else cells
    total, count = (values * chosen).flatten(1).sum(1).double(), chosen.flatten(1).sum(1).double()
    ratio = total.sum() / count.sum()
    return float(ratio), float((total - ratio * count).std() / count.mean() / sqrt(len(values)))


def cells_of_row(results: Sequence[tuple[float, float]], earlier: Sequence[float | None], n: int) -> list[str]:
    """Text of each result, with its standard error and its difference to the earlier one."""
    texts = []
    for (value, error), before in zip(results, earlier):
        text = f"{value:.3g} ± {error:.1g}"
        if before is not None:
            text += f" ({before:g}: {(before - value) / error / sqrt(1 + n / 128):+.1f})"
        texts.append(text)
    return texts


def write_row(name: object, *cells: str, is_head: bool = False) -> None:
    """Write a row of a Markdown table, with a rule below a head."""
    sys.stdout.write("| " + " | ".join([str(name), *cells]) + " |\n")
    if is_head:
        sys.stdout.write("|---" * (len(cells) + 1) + "|\n")
    sys.stdout.flush()


def write_p_masks(n: int) -> None:
    """Write losses and nuclear norms by p_mask."""
    write_row("7x7 rank 2, p_mask", "L", "L_mask", "nuclear norm", "of the truth", is_head=True)
    for p_mask in P_MASKS:
        x, observed = sample(n, p_mask=p_mask)
        z = complete_by_nuclear_norm(x, observed)
        errors = (z - x).square()
        norms = [mean(torch.linalg.svdvals(m).sum(-1, keepdim=True)) for m in (z, x)]
        results = [mean(errors), mean(errors, ~observed), *norms]
        write_row(p_mask, *cells_of_row(results, BY_P_MASK.get(p_mask, (None,) * 4), n))


def write_tasks(n: int) -> None:
    """Write losses by size, rank and factors."""
    write_row("p_mask 0.3, others", "L", "L_mask", is_head=True)
    for name, (fields, earlier) in BY_TASK.items():
        x, observed = sample(n, **fields)
        errors = (complete_by_nuclear_norm(x, observed) - x).square()
        write_row(name, *cells_of_row([mean(errors), mean(errors, ~observed)], earlier, n))


def write_penalties(n: int) -> None:
    """Write losses by penalty."""
    write_row("7x7 rank 2, p_mask 0.3, penalty", "L_obs", "L_mask", "L", is_head=True)
    x, observed = sample(n)
    completed = complete_by_nuclear_norm(x, observed, penalty=torch.tensor(list(BY_PENALTY))[:, None])
    for z, (penalty, earlier) in zip(completed, BY_PENALTY.items()):
        errors = (z - x).square()
        results = [mean(errors, observed), mean(errors, ~observed), mean(errors)]
        write_row(penalty, *cells_of_row(results, earlier, n))


def write_disconnected(n: int) -> None:
    """Write shares of disconnected cells among masked ones."""
    write_row("p_mask 0.3, disconnected of masked cells", "measured", "exact", "before", is_head=True)
    for side, earlier in BY_SIDE.items():
        _, observed = sample(50 * n, rows=side, cols=side)
        share, error = mean(disconnected(observed).float(), ~observed)
        exact = disconnected_share(side, side, 0.3) / 0.3
        write_row(f"{side}x{side}", f"{share:.2%} ± {error:.2%}", f"{exact:.3%}", f"{earlier:.2%}")


WRITERS = {
    "p_mask": write_p_masks,
    "tasks": write_tasks,
    "penalties": write_penalties,
    "disconnected": write_disconnected,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2048, help="matrices of each setting (default 2048)")
    parser.add_argument("--only", choices=WRITERS, nargs="+", default=list(WRITERS), help="tables (default: all)")
    options = parser.parse_args()
    sys.stdout.write(f"{options.n} matrices a setting\n")
    for name in options.only:
        sys.stdout.write("\n")
        WRITERS[name](options.n)
