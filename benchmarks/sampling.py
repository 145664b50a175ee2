"""Time of sampling each task, compared with its training step and with a Python loop.

    python benchmarks/sampling.py --rounds 5

Sizes are those of the papers. Each row times sampling, a training step and the loop in turn, round after round, and
prints medians of the ratios of the rounds. A sampler should take at most 3 % of its step.

The first table has the tasks of arXiv 2506.13688 with 256 sequences, the second those of arXiv 2505.03997 with batches
of 64 and `transformer_pp(64, 4)`. "1024 / 64" is the time of 1,024 sequences divided by 16 times that of 64, which is
below 1 where sampling is vectorized.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from itertools import accumulate

import torch
from bench import seconds

import plateaulens as pl
from plateaulens.papers.abrupt_learning import recipes as abrupt_learning
from plateaulens.papers.quiet_features import recipes as quiet_features


def looped(task: pl.tasks.Task) -> list[int]:
    """A sequence of `task`, drawn number by number."""
    n = task.n
    match task:
        case pl.tasks.Addition():
            a, b = random.randint(1, 10**n - 1), random.randint(1, 10**n - 1)
            digits = [int(c) for c in f"{a:0{n}}{b:0{n}}{a + b:0{n + 1}}"]
            return [*digits[:n], 10, *digits[n : 2 * n], 11, *digits[: 2 * n - 1 : -1]]
        case pl.tasks.Permutation():
            x, pi = [random.randint(n + 1, 2 * n) for _ in range(n)], random.sample(range(n), n)
            return [*x, 0, *(i + 1 for i in pi), 0, *(x[i] for i in pi)]
    x = [random.choice(task.values) for _ in range(n)]
    match task:
        case pl.tasks.MovingWindowSum():
            y = [x[i] if i < task.k - 1 else sum(x[i - task.k + 1 : i + 1]) % task.p for i in range(n)]
        case pl.tasks.WindowMix():
            y = [sum(x[i] for i in window) % task.p for window in task.windows]
        case pl.tasks.PrefixSum():
            y = [s % task.p for s in accumulate(x)]
        case pl.tasks.Histogram():
            y = [x.count(v) for v in x]
        case pl.tasks.Repeat():
            y = [(x[0] + i * task.k // n) % task.p for i in range(n)]
        case pl.tasks.Reverse():
            y = x[::-1]
        case _:
            y = x
    return [*x, task.separator, *y]


def plateau_tasks(rounds: int) -> None:
    """Print the table of arXiv 2506.13688."""
    print(f"{'task':16} {'sample ms':>10} {'step ms':>9} {'loop ms':>9} {'sample/step':>12} {'loop/sample':>12}")
    for name, recipe in abrupt_learning.RECIPES.items():
        step = training_step(recipe.model_config(), recipe.task, recipe.train)
        rows = []
        for i in range(rounds):
            sample = sampling_seconds(recipe.task, 256, 10 * i)
            taken = seconds(step)
            loop = seconds(lambda task=recipe.task: torch.tensor([looped(task) for _ in range(256)]))
            rows.append((sample, taken, loop, sample / taken, loop / sample))
        a, b, c, share, times = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:16} {a * 1e3:10.2f} {b * 1e3:9.1f} {c * 1e3:9.1f} {share:12.4f} {times:11.0f}x", flush=True)


def quiet_tasks(rounds: int) -> None:
    """Print the table of arXiv 2505.03997."""
    print(f"\n{'task':16} {'sample ms':>10} {'step ms':>9} {'sample/step':>12} {'1024 / 64':>12}")
    for name, recipe in quiet_features.RECIPES.items():
        task = recipe.task
        step = training_step(recipe.model_config(), task, quiet_features.schedule(1000))
        rows = []
        for i in range(rounds):
            sample, many = sampling_seconds(task, 64, 10 * i), sampling_seconds(task, 1024, 10 * i)
            taken = seconds(step)
            rows.append((sample, taken, sample / taken, many / (16 * sample)))
        a, b, share, growth = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:16} {a * 1e3:10.2f} {b * 1e3:9.1f} {share:12.4f} {growth:12.2f}", flush=True)


def sampling_seconds(task: pl.tasks.Task, n: int, seed: int) -> float:
    """Mean time of sampling a batch in seconds, over ten batches."""
    return seconds(lambda: [task.sample(n, seed=seed + j) for j in range(10)]) / 10


def training_step(cfg: pl.ModelConfig, task: pl.tasks.Task, train: pl.TrainConfig) -> Callable[[], object]:
    """A training step, after two steps for warming up."""
    training = pl.train(pl.Transformer(cfg), task, train)
    next(training), next(training)
    return lambda: next(training)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds of each comparison (default 5).")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    plateau_tasks(rounds)
    quiet_tasks(rounds)


if __name__ == "__main__":
    main()
