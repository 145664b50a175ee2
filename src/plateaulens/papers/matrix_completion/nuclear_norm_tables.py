"""Tables of docs/nuclear_norm.md: `python docs/nuclear_norm.py`, minutes on one core. `--n` matrices a setting.

Beside every number its standard error, and the one that a solver by Douglas-Rachford and FISTA gave on 96 to 256
matrices ("before"), with their difference in errors of both, the latter as of 128 matrices.
"""

import argparse
import sys
from math import sqrt

import torch
from torch import Tensor

import plateaulens as pl
from plateaulens.papers.matrix_completion.connectivity import disconnected
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.tasks.matrices.completion import disconnected_share

SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
# p_mask: L, L_mask, nuclear norm of the completed and of the true matrices
SWEEP = {
    0.1: (0.0011, 0.0115, 4.39, 4.41),
    0.2: (0.0037, 0.019, 4.31, 4.37),
    0.3: (0.012, 0.039, 4.28, 4.43),
    0.4: (0.030, 0.073, 4.05, 4.37),
    0.5: (0.052, 0.106, 3.87, 4.40),
    0.6: (0.090, 0.148, 3.48, 4.35),
}
# L, L_mask
OTHERS = {
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
# penalty: L_obs, L_mask, L
PENALTIES = {
    5e-4: (1.0e-5, 0.0334, 0.0100),
    1e-3: (3.7e-5, 0.0336, 0.0101),
    1.5e-3: (None, None, None),
    1.75e-3: (None, None, None),
    2e-3: (1.4e-4, 0.0341, 0.0103),
    5e-3: (7.8e-4, 0.0372, 0.0117),
    1e-2: (2.9e-3, 0.0441, 0.0152),
}


def sample(n: int, **fields: object) -> tuple[Tensor, Tensor]:
    """Matrices and which cells are observed."""
    task = pl.tasks.MatrixCompletion(**fields)  # type: ignore[arg-type]
    batch = task.sample(n, seed=0)
    return batch.values.view(n, task.rows, task.cols), batch.observed.view(n, task.rows, task.cols)


def mean(values: Tensor, cells: Tensor | None = None) -> tuple[float, float]:
    """Over the chosen cells of all matrices, and its standard error: that of a ratio of sums over matrices."""
    chosen = torch.ones_like(values, dtype=torch.bool) if cells is None else cells
    total, count = (values * chosen).flatten(1).sum(1).double(), chosen.flatten(1).sum(1).double()
    ratio = total.sum() / count.sum()
    return float(ratio), float((total - ratio * count).std() / count.mean() / sqrt(len(values)))


def cell(found: tuple[float, float], before: float | None, n: int) -> str:
    """One cell of a table."""
    value, error = found
    text = f"{value:.3g} ± {error:.1g}"
    return text if before is None else f"{text} ({before:g}: {(before - value) / error / sqrt(1 + n / 128):+.1f})"


def row(name: object, *cells: str) -> None:
    """A row of a Markdown table; with a rule below when the name ends in a colon."""
    sys.stdout.write("| " + " | ".join([str(name).rstrip(":"), *cells]) + " |\n")
    if str(name).endswith(":"):
        sys.stdout.write("|---" * (len(cells) + 1) + "|\n")
    sys.stdout.flush()


def main(n: int) -> None:
    """Print all tables."""
    sys.stdout.write(f"{n} matrices a setting\n\n")
    row("7x7 rank 2, p_mask:", "L", "L_mask", "nuclear norm", "of the truth")
    for share in SHARES:
        x, seen = sample(n, p_mask=share)
        z = complete_by_nuclear_norm(x, seen)
        before = SWEEP.get(share, (None,) * 4)
        norms = [mean(torch.linalg.svdvals(m).sum(-1, keepdim=True)) for m in (z, x)]
        found = [mean((z - x).square()), mean((z - x).square(), ~seen), *norms]
        row(share, *(cell(f, b, n) for f, b in zip(found, before)))
    sys.stdout.write("\n")
    row("p_mask 0.3, others:", "L", "L_mask")
    for name, (fields, before) in OTHERS.items():
        x, seen = sample(n, **fields)
        wrong = (complete_by_nuclear_norm(x, seen) - x).square()
        row(name, cell(mean(wrong), before[0], n), cell(mean(wrong, ~seen), before[1], n))
    sys.stdout.write("\n")
    row("7x7 rank 2, p_mask 0.3, penalty:", "L_obs", "L_mask", "L")
    x, seen = sample(n)
    swept = complete_by_nuclear_norm(x, seen, penalty=torch.tensor(list(PENALTIES))[:, None])
    for z, (penalty, before) in zip(swept, PENALTIES.items()):
        wrong = (z - x).square()
        found = [mean(wrong, seen), mean(wrong, ~seen), mean(wrong)]
        row(penalty, *(cell(f, b, n) for f, b in zip(found, before)))
    sys.stdout.write("\n")
    row("p_mask 0.3, disconnected of masked cells:", "measured", "exact", "before")
    for side, before in ((4, 0.067), (5, 0.019), (6, 0.005), (7, 0.0016)):
        _, seen = sample(50 * n, rows=side, cols=side)
        share, error = mean(disconnected(seen).float(), ~seen)
        exact = disconnected_share(side, side, 0.3) / 0.3
        row(f"{side}x{side}", f"{share:.2%} ± {error:.2%}", f"{exact:.3%}", f"{before:.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2048, help="matrices of each setting (default 2048)")
    main(parser.parse_args().n)
