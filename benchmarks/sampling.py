"""Sampling every task, beside the training step that consumes the batch and beside a Python loop.

    python benchmarks/sampling.py --rounds 5

Paper sizes, 256 sequences. Each row times sampling, one training step and the loop in turn, round after
round, and gives medians of the per-round ratios. A sampler should take at most 3 % of its step.
"""

import argparse
import random
import statistics
from itertools import accumulate

import torch
from bench import seconds

import plateaulens as pl
from plateaulens.papers.plateau import RECIPES


def looped(task: pl.Task) -> list[int]:
    """One sequence of `task`, number by number."""
    n = task.n
    match task:
        case pl.Addition():
            a, b = random.randint(1, 10**n - 1), random.randint(1, 10**n - 1)
            digits = [int(c) for c in f"{a:0{n}}{b:0{n}}{a + b:0{n + 1}}"]
            return [*digits[:n], 10, *digits[n : 2 * n], 11, *digits[: 2 * n - 1 : -1]]
        case pl.Permutation():
            x, pi = [random.randint(n + 1, 2 * n) for _ in range(n)], random.sample(range(n), n)
            return [*x, 0, *(i + 1 for i in pi), 0, *(x[i] for i in pi)]
    x = [random.choice(task.values) for _ in range(n)]
    match task:
        case pl.MovingWindowSum():
            y = [x[i] if i < task.k - 1 else sum(x[i - task.k + 1 : i + 1]) % task.p for i in range(n)]
        case pl.WindowMix():
            y = [sum(x[i] for i in window) % task.p for window in task.windows]
        case pl.PrefixSum():
            y = [s % task.p for s in accumulate(x)]
        case pl.Histogram():
            y = [x.count(v) for v in x]
        case pl.Repeat():
            y = [(x[0] + i * task.k // n) % task.p for i in range(n)]
        case pl.Reverse():
            y = x[::-1]
        case _:
            y = x
    return [*x, task.separator, *y]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (default 5)")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'task':14} {'sample ms':>10} {'step ms':>9} {'loop ms':>9} {'sample/step':>12} {'loop/sample':>12}")
    for name, recipe in RECIPES.items():
        training = pl.train(pl.Transformer(recipe.model_config()), recipe.task, recipe.train)
        next(training), next(training)
        recipe.task.sample(256, seed=0)
        rows = []
        for i in range(rounds):
            sample = seconds(lambda i=i, task=recipe.task: [task.sample(256, seed=10 * i + j) for j in range(10)]) / 10
            step = seconds(lambda training=training: next(training))
            loop = seconds(lambda task=recipe.task: torch.tensor([looped(task) for _ in range(256)]))
            rows.append((sample, step, loop, sample / step, loop / sample))
        a, b, c, share, times = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:14} {a * 1e3:10.2f} {b * 1e3:9.1f} {c * 1e3:9.1f} {share:12.4f} {times:11.0f}x", flush=True)


if __name__ == "__main__":
    main()
