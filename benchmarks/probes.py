"""All probes of one checkpoint, beside a loop over scikit-learn's LogisticRegression.

    python benchmarks/probes.py --rounds 3

Addition of 10 bits, d_model 64, 3 layers, untrained and after 96 steps: carry and first operand at every layer and
position, C = 100 (arXiv 2505.03997). Cold starts at 0, warm at the probes of 4 steps before. Ours should be 10 times
faster cold, and lose no more on sequences that neither has seen; "Hessians" is the cold time over one X'X a probe.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from bench import seconds
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import plateaulens as pl
from plateaulens.analysis.probing import Parts, Question, states_at
from plateaulens.analysis.solvers import Fit, logistic
from plateaulens.papers.quiet import SMALL

RECIPE, STEPS = SMALL["addition"], (0, 92, 96)
C, TESTS = 100.0, 1000


def activations(model: pl.Transformer, batch: pl.Batch, n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each feature all problems, a site and position each: activations and labels."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    parts = Parts.of(len(batch), (n / len(batch), 0.0, 1 - n / len(batch)), C, 0)
    questions = [Question.of(batch, feature, parts) for feature in ("carry", "first_operand")]
    states = states_at(model, batch, questions, names)
    return {q.name: (x.flatten(0, 1), q.labels.repeat(len(names), 1, 1)) for q, x in zip(questions, states)}


def theirs(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Coefficients and intercept of each problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lbfgs has not converged
        fits = [LogisticRegression(C=C, max_iter=1000).fit(*problem) for problem in zip(x, y)]
    return [np.append(fit.coef_[0], fit.intercept_) for fit in fits]


def refit(before: dict[str, Fit] | None, train: dict[str, tuple[Tensor, Tensor]], l2: float) -> None:
    """All probes, from those of an earlier step, if there are any."""
    for name, (x, y) in train.items():
        logistic(x, y, l2, start=before[name] if before else None)


def log_loss(weights: Tensor, x: Tensor, y: Tensor) -> float:
    """In nats, over all problems."""
    z = x @ weights[..., :-1, None] + weights[..., None, -1:]
    return float(F.binary_cross_entropy_with_logits(z, y))


def floor(n: int, problems: int) -> float:
    """Seconds of one Hessian a problem, at the measured rate of matrix products."""
    a = torch.randn(problems, n, 65)
    return min(seconds(lambda: a.mT @ a) for _ in range(5))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (default 3)")
    parser.add_argument("--examples", type=int, nargs="+", default=[1200, 10_000], help="training sequences")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    training = pl.train(pl.Transformer(RECIPE.model_config()), RECIPE.task, RECIPE.train)
    weights = {}
    for step in training:
        if step.t in STEPS:
            weights[step.t] = {name: value.clone() for name, value in step.model.state_dict().items()}
        if step.t == max(STEPS):
            break
    model = pl.Transformer(RECIPE.model_config())
    head = f"{'step':>5} {'n':>6} {'probes':>7} {'cold s':>8} {'warm s':>8} {'sklearn s':>10} {'cold':>6} {'warm':>6}"
    print(f"{head} {'Hessians':>9}   held-out log-loss: ours, sklearn")
    for n in options.examples:
        batch, before = RECIPE.task.sample(n + TESTS, seed=5), None
        for step in STEPS:
            model.load_state_dict(weights[step])
            data, l2 = activations(model, batch, n), 1 / (C * n)
            train = {name: (x[:, :n].contiguous(), y[:, :n].contiguous()) for name, (x, y) in data.items()}
            fits = {name: logistic(x, y, l2) for name, (x, y) in train.items()}
            if step == STEPS[1]:
                before = fits
                continue
            numbers = {name: (x.numpy(), y[..., 0].int().numpy()) for name, (x, y) in train.items()}
            rows = []
            for _ in range(options.rounds):
                start = time.perf_counter()
                other = {name: theirs(*problem) for name, problem in numbers.items()}
                sklearn = time.perf_counter() - start
                cold = seconds(lambda train=train, l2=l2: [logistic(*xy, l2) for xy in train.values()])
                warm = seconds(lambda train=train, l2=l2, before=before: refit(before, train, l2))
                rows.append((cold, warm, sklearn, sklearn / cold, sklearn / warm))
            cold, warm, sklearn, a, b = (statistics.median(column) for column in zip(*rows))
            problems = sum(len(x) for x, _ in train.values())
            losses = [
                statistics.mean(log_loss(w[name], x[:, n:], y[:, n:]) for name, (x, y) in data.items())
                for w in (
                    {k: torch.cat([fit.weights[:, 0], fit.biases], -1) for k, fit in fits.items()},
                    {k: torch.tensor(np.stack(fit), dtype=torch.float) for k, fit in other.items()},
                )
            ]
            after = f"{cold / floor(n, problems):8.1f}x   {losses[0]:.4f}, {losses[1]:.4f}"
            times = (
                f"{cold:8.3f} {warm:8.3f} {sklearn:10.2f} {a:5.0f}x {b:5.0f}x"
                if before
                else (f"{cold:8.3f} {'-':>8} {sklearn:10.2f} {a:5.0f}x {'-':>6}")
            )
            print(f"{step:5} {n:6} {problems:7} {times} {after}", flush=True)


if __name__ == "__main__":
    main()
