"""`probe_checkpoints` and a plain loop over scikit-learn's LogisticRegression.

    OMP_NUM_THREADS=1 python benchmarks/probes.py --rounds 3

Addition of 10 bits, d_model 64, 3 layers, at steps 0 and 96: a probe of the carry and of the first operand at every
layer and position, C = 100 (arXiv 2505.03997). The loop fits the same states with the same solver (newton-cholesky, in
float64), without splits, baselines and scores. Ratios are medians over rounds.
"""

import argparse
import statistics
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
from bench import seconds
from sklearn.linear_model import LogisticRegression

import plateaulens as pl
from plateaulens.papers.quiet_features import SMALL_RECIPES
from plateaulens.probing.datasets import ProbeConfig, ProbeDataset, ProbeSplit, group_copies, states_at

RECIPE, STEPS = SMALL_RECIPES["binary-addition"], [0, 96]
FEATURES, SITES = ["carry", "first_operand"], [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
CONFIG = ProbeConfig(C=100.0, fractions=(0.65, 0.1, 0.25), shuffled=False)


def loop(run: pl.Run, batch: pl.Batch) -> float:
    """What a user would write; returns the mean held-out loss in nats."""
    split, losses = ProbeSplit.of(group_copies(batch.tokens), CONFIG), []
    for step in STEPS:
        datasets = [ProbeDataset.of(batch, feature, split) for feature in FEATURES]
        for dataset, states in zip(datasets, states_at(run.model(step), batch, datasets, SITES), strict=True):
            for site in states.double().numpy():
                for x, y in zip(site, dataset.labels[..., 0].int().numpy(), strict=True):
                    fit = LogisticRegression(C=CONFIG.C, solver="newton-cholesky").fit(x[split.train], y[split.train])
                    p = fit.predict_proba(x[split.test])[np.arange(len(split.test)), y[split.test]]
                    losses.append(-np.log(p).mean())
    return float(np.mean(losses))


def ours(run: pl.Run, batch: pl.Batch, n_jobs: int) -> float:
    """The mean held-out loss in nats by `probe_checkpoints`, which also probes the untrained network."""
    options = {"C": CONFIG.C, "fractions": CONFIG.fractions, "shuffled": False, "n_jobs": n_jobs, "progress": False}
    return float(pl.probe_checkpoints(run, batch, FEATURES, SITES, steps=STEPS, **options).loss.mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (default 3)")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1600], help="sequences (default 1600)")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        run = RECIPE.record(f"{folder}/run", every=96, save_every=STEPS[1:], until=STEPS[-1], progress=False)
        for n in options.sequences:
            batch = RECIPE.task.sample(n, seed=5)
            losses = [loop(run, batch), ours(run, batch, 1), ours(run, batch, 2)]
            rows = [
                [seconds(partial(loop, run, batch)), *(seconds(partial(ours, run, batch, jobs)) for jobs in (1, 2))]
                for _ in range(options.rounds)
            ]
            times = [statistics.median(column) for column in zip(*rows, strict=True)]
            ratios = [statistics.median(row[0] / row[i] for row in rows) for i in (1, 2)]
            print(f"{n} sequences, {len(STEPS)} steps: held-out loss {losses[0]:.4f} (loop), {losses[1]:.4f} (ours)")
            print(f"  seconds: loop {times[0]:.2f}, ours with 1 thread {times[1]:.2f}, with 2 {times[2]:.2f}")
            print(f"  loop / ours: {ratios[0]:.2f} with 1 thread, {ratios[1]:.2f} with 2 (three models, not two)")


if __name__ == "__main__":
    main()
