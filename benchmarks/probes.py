"""All probes of one checkpoint, beside a loop over scikit-learn's LogisticRegression.

    python benchmarks/probes.py --rounds 3

Addition of 10 bits, d_model 64, 3 layers, untrained and after 96 steps: carry and first operand at every layer and
position, C = 100 (arXiv 2505.03997). Cold starts at 0, warm at the probes of 4 steps before. Ours should be 10 times
faster cold than the paper's call (lbfgs, which ends short of the optimum: see "gap"), and lose no more on sequences
that neither has seen. "newton" is scikit-learn's fastest way to the optimum, newton-cholesky in float64. Ratios are
medians over rounds; "gap" is the mean objective above that of a float64 fit, in nats; "Hessians" is the cold time over
one X'X a probe.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from bench import seconds
from plateaulens.probing.solvers import LinearProbe, logistic
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import plateaulens as pl
from plateaulens.papers.quiet_features.recipes import SMALL_RECIPES
from plateaulens.probing.fitting import ProbeDataset, ProbeSplit, states_at

RECIPE, STEPS = SMALL_RECIPES["binary-addition"], (0, 92, 96)
C, TESTS = 100.0, 1000
WIDTHS = (5, 7, 8, 8, 8, 8, 8, 8, 8, 13, 10)


def activations(model: pl.Transformer, batch: pl.Batch, n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each feature all problems, a site and position each: activations and labels."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    parts = ProbeSplit.of(len(batch), (n / len(batch), 0.0, 1 - n / len(batch)), C, 0)
    questions = [ProbeDataset.of(batch, feature, parts) for feature in ("carry", "first_operand")]
    states = states_at(model, batch, questions, names)
    return {q.name: (x.flatten(0, 1), q.labels.repeat(len(names), 1, 1)) for q, x in zip(questions, states)}


def theirs(x: np.ndarray, y: np.ndarray, solver: str) -> Tensor:
    """Coefficients and intercept of each problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lbfgs has not converged
        fits = [LogisticRegression(C=C, max_iter=1000, solver=solver).fit(*problem) for problem in zip(x, y)]
    return torch.tensor(np.stack([np.append(fit.coef_[0], fit.intercept_) for fit in fits]))


def ours(fit: LinearProbe) -> Tensor:
    """As `theirs`."""
    return torch.cat([fit.weights[:, 0], fit.biases], -1)


def refit(before: dict[str, LinearProbe] | None, train: dict[str, tuple[Tensor, Tensor]], l2: float) -> None:
    """All probes, from those of an earlier step, if there are any."""
    for name, (x, y) in train.items():
        logistic(x, y, l2, start=before[name] if before else None)


def log_loss(weights: Tensor, x: Tensor, y: Tensor) -> float:
    """In nats, over all problems."""
    w = weights.double()
    return float(F.binary_cross_entropy_with_logits(x.double() @ w[..., :-1, None] + w[..., None, -1:], y.double()))


def objective(weights: Tensor, x: Tensor, y: Tensor, l2: float) -> float:
    """What is minimized, over all problems."""
    return log_loss(weights, x, y) + l2 / 2 * float(weights[:, :-1].double().square().sum(-1).mean())


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
    print(f"{'':20} {'seconds':^32} {'their / our seconds':^26}   held-out log-loss, and gap")
    head = "step n probes cold warm lbfgs newton lbfgs newton newton/warm Hessians".split()
    print("".join(f"{name:>{width}}" for name, width in zip(head, WIDTHS)) + "   ours, lbfgs, newton")
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
            double = {name: (x.astype(np.double), y) for name, (x, y) in numbers.items()}
            found, rows = {"ours": {name: ours(fit) for name, fit in fits.items()}}, []
            for _ in range(options.rounds):
                times = [
                    seconds(lambda train=train, l2=l2: refit(None, train, l2)),
                    seconds(lambda train=train, l2=l2, before=before: refit(before, train, l2)) if before else np.nan,
                ]
                for solver, problems in (("lbfgs", numbers), ("newton-cholesky", double)):
                    start = time.perf_counter()
                    found[solver] = {name: theirs(*problem, solver) for name, problem in problems.items()}
                    times.append(time.perf_counter() - start)
                cold, warm, lbfgs, newton = times
                rows.append((*times, lbfgs / cold, newton / cold, newton / warm))
            *times, a, b, c = (statistics.median(column) for column in zip(*rows))
            exact = {name: ours(logistic(x.double(), y, l2, tolerance=1e-9)) for name, (x, y) in train.items()}
            least = [objective(exact[name], *train[name], l2) for name in train]
            eval_batch = [
                statistics.mean(log_loss(w[k], x[:, n:], y[:, n:]) for k, (x, y) in data.items())
                for w in found.values()
            ]
            gaps = [
                statistics.mean(objective(w[k], *train[k], l2) - low for k, low in zip(train, least))
                for w in found.values()
            ]
            count = sum(len(x) for x, _ in train.values())
            cells = [step, n, count, *(f"{t:.2f}" for t in times), f"{a:.0f}x", f"{b:.1f}x", f"{c:.1f}x"]
            cells = ["-" if "nan" in str(cell) else cell for cell in cells]
            row = "".join(f"{v:>{width}}" for v, width in zip([*cells, f"{times[0] / floor(n, count):.0f}x"], WIDTHS))
            print(row + "   " + ", ".join(f"{h:.4f} ({g:.0e})" for h, g in zip(eval_batch, gaps)), flush=True)


if __name__ == "__main__":
    main()
