"""The phenomenon itself, on `mws-small`: a plateau with collapse and repetition, then the drop."""

import pytest
import torch

import plateaulens as pl

TASK = pl.tasks.MovingWindowSum(n=8, k=2, p=17)
WATCH = [
    pl.metrics.loss,
    pl.metrics.accuracy,
    pl.metrics.position_accuracy,
    pl.metrics.repetition,
    pl.metrics.collapse,
    pl.metrics.attention_progress,
]


def curves(seed, steps):
    """Every tenth step as {name: value}; two pages of training on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=64, seed=seed))
        eval_batch = TASK.sample(256, seed=10**6)
        training = pl.train(model, TASK, pl.TrainConfig(steps=steps, batch_size=64, lr=1e-3, seed=seed))
        return [pl.measure(model, eval_batch, WATCH) for step in training if step.t % 10 == 0]
    finally:
        torch.set_num_threads(threads)


def series(rows, name):
    return [row[name].item() for row in rows]


def plateau_then_drop(rows):
    """What must be true of a seed that dropped."""
    accuracy = series(rows, "accuracy")
    collapse, loss, progress = series(rows, "collapse"), series(rows, "loss"), series(rows, "attention_progress")
    drop = next(i for i, a in enumerate(accuracy) if a > 0.5)
    assert accuracy[-1] > 0.99
    assert max(collapse) > 0.95 and collapse.index(max(collapse)) < drop and collapse[-1] < 0.1
    assert max(series(rows, "repetition")[:drop]) > 0.35 and series(rows, "repetition")[-1] < 0.1
    assert any(row["position_accuracy"][0] > 0.9 and row["accuracy"] < 0.3 for row in rows)
    assert any(abs(value - TASK.loss_plateau()) < 0.06 for value in loss[:drop])
    assert TASK.loss_floor() < loss[-1] < TASK.loss_floor() + 0.1
    assert loss[0] == pytest.approx(2.93, abs=0.1) and progress[0] < 0.25 and progress[-1] > 0.6


def test_one_seed_sits_on_the_plateau_and_then_drops():
    plateau_then_drop(curves(seed=1, steps=400))


@pytest.mark.slow
def test_at_least_nine_of_ten_seeds_drop():
    dropped = [
        rows for rows in (curves(seed, steps=600) for seed in range(10)) if max(series(rows[:51], "accuracy")) > 0.5
    ]
    assert len(dropped) >= 9
    for rows in dropped:
        plateau_then_drop(rows)
