"""Nuclear-norm completion of many matrices, beside a loop over cvxpy.

    python benchmarks/nuclear_norm.py --rounds 3

7 x 7, rank 2, p_mask 0.3. "as the paper" makes a problem for each matrix and leaves the solver to cvxpy (arXiv
2410.22244: SCS); "compiled once" sets the parameters of one problem, by Clarabel. CPU seconds of this process, per
matrix; ratios are medians over rounds with their range. "above" is the largest nuclear norm above that of ours at
tol=1e-8, over it, and "off" the largest violated observation.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

import plateaulens as pl
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm

Solve = Callable[[Tensor, Tensor], Tensor]


def as_the_paper(x: Tensor, seen: Tensor) -> Tensor:
    """A problem for each matrix."""
    found = []
    for matrix, mask in zip(x.numpy(), seen.numpy()):
        z = cp.Variable(matrix.shape)
        cp.Problem(cp.Minimize(cp.normNuc(z)), [cp.multiply(mask, z) == mask * matrix]).solve()
        found.append(z.value)
    return torch.from_numpy(np.stack(found))


def compiled_once() -> Solve:
    """One problem with parameters."""
    z, known, mask = cp.Variable((7, 7)), cp.Parameter((7, 7)), cp.Parameter((7, 7), nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.normNuc(z)), [cp.multiply(mask, z) == known])

    def solve(x: Tensor, seen: Tensor) -> Tensor:
        found = []
        for matrix, shown in zip(x.numpy(), seen.double().numpy()):
            mask.value, known.value = shown, shown * matrix
            problem.solve(solver=cp.CLARABEL)
            found.append(z.value)
        return torch.from_numpy(np.stack(found))

    return solve


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (default 3)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, cvxpy {cp.__version__}, {torch.get_num_threads()} threads\n")
    batch = pl.tasks.MatrixCompletion().sample(2048, seed=0)
    x, seen = batch.values.view(-1, 7, 7).double(), batch.observed.view(-1, 7, 7)
    ways: dict[str, tuple[int, Solve]] = {
        "ours": (2048, complete_by_nuclear_norm),
        "as the paper": (64, as_the_paper),
        "compiled once": (64, compiled_once()),
    }
    least = torch.linalg.svdvals(complete_by_nuclear_norm(x, seen, tol=1e-8)).sum(-1)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    for solve in (solve for _, solve in ways.values()):
        solve(x[:2], seen[:2])
    for _ in range(options.rounds):
        for name, (n, solve) in ways.items():
            start = time.process_time()
            found[name] = solve(x[:n], seen[:n])
            taken[name].append((time.process_time() - start) / n)
    print(f"{'':14}{'ms a matrix':>12}{'over ours':>20}{'above':>10}{'off':>10}")
    for name, (n, _) in ways.items():
        z, ratios = found[name], [t / ours for t, ours in zip(taken[name], taken["ours"])]
        above = (torch.linalg.svdvals(z).sum(-1) / least[:n] - 1).max()
        off = ((z - x[:n]) * seen[:n]).abs().max()
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
        print(f"{name:14}{1e3 * statistics.median(taken[name]):>12.2f}{ratio:>20}{above:>10.0e}{off:>10.0e}")


if __name__ == "__main__":
    main()
