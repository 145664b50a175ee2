"""Losses on other distributions of a model and of nuclear-norm minimization (arXiv 2410.22244, figs. 3, 19).

tasks = {p: replace(task, p_mask=p) for p in (0.1, 0.3, 0.5)}
evaluate_ood(model, tasks).masked_loss
"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.protocols import HookedModel
from plateaulens.tasks.base import generator
from plateaulens.tasks.matrices.completion import MatrixBatch, MatrixCompletion
from plateaulens.tasks.matrices.metrics import mean_over_cells
from plateaulens.tracing.traces import trace

CHUNK_SIZE = 1024  # matrices in one forward pass


def evaluate_ood(
    model: HookedModel,
    tasks: Mapping[Any, MatrixCompletion],
    *,
    n: int = 1024,
    seed: int = 0,
    trained_on: MatrixCompletion | None = None,
) -> xr.Dataset:
    """Losses of a model and of nuclear-norm minimization on the same new matrices of each task.

    A smaller matrix is read row by row at the first positions; with another number of columns its cells are at other
    positions than in training.

    Args:
        model: Any hooked model with one output per position.
        tasks: Tasks by what differs: a number or a name.
        n: Number of matrices of each task.
        seed: Seed of the matrices.
        trained_on: The model's task. The model itself has a number of tokens only, not their values: without
            `trained_on`, a task of another precision with as many tokens is not refused.

    Returns:
        Over (shift, solver), with the tasks' keys and "model" or "nuclear norm": `loss`, `observed_loss` and
        `masked_loss`, mean squared errors over cells, and `nuclear_norm`, that of the completed matrix, mean over
        matrices. Over shift: `true_nuclear_norm`, that of the true matrices; `zero_loss`, the mean square of masked
        entries; `clipped`, the share of entries beyond the largest token's value.

    Raises:
        ValueError: For no task, or a task of another vocabulary than the model's, of other token values than those of
            `trained_on`, or of more cells than the model has positions.
    """
    if not tasks:
        raise ValueError("got no task to evaluate on")
    for task in tasks.values():
        if task.d_vocab != model.cfg.d_vocab:
            raise ValueError(
                f"{task!r} has {task.d_vocab} tokens, the model {model.cfg.d_vocab}; keep precision and limit"
            )
        if trained_on is not None and (task.precision, task.limit) != (trained_on.precision, trained_on.limit):
            raise ValueError(
                f"{task!r} has tokens of other values than the model's task {trained_on!r}; keep precision and limit"
            )
        if task.n_ctx > model.cfg.n_ctx:
            raise ValueError(
                f"{task.rows} x {task.cols} are {task.n_ctx} cells, and the model has {model.cfg.n_ctx} positions; "
                "choose smaller matrices"
            )
    datasets = [_losses(model, task, task.sample(n, seed=seed), seed) for task in tasks.values()]
    return xr.concat(datasets, xr.Variable("shift", list[Hashable](tasks)))


def _losses(model: HookedModel, task: MatrixCompletion, batch: MatrixBatch, seed: int) -> xr.Dataset:
    size = (task.rows, task.cols)
    observed, true = batch.observed, batch.values
    chunks = (batch[i : i + CHUNK_SIZE] for i in range(0, len(batch), CHUNK_SIZE))
    predicted = torch.cat([trace(model, chunk, ["outputs"]).outputs.cpu() for chunk in chunks])
    completed = complete_by_nuclear_norm(true.unflatten(1, size), observed.unflatten(1, size)).flatten(1)
    rows = []
    for outputs in (predicted, completed):
        errors = (outputs - true).square()
        losses = [mean_over_cells(errors, cells).mean() for cells in (torch.ones_like(observed), observed, ~observed)]
        rows.append([*map(float, losses), mean_nuclear_norm(outputs.unflatten(1, size))])
    by_solver = zip(("loss", "observed_loss", "masked_loss", "nuclear_norm"), zip(*rows))
    return xr.Dataset(
        {
            **{name: ("solver", list(values)) for name, values in by_solver},
            "true_nuclear_norm": mean_nuclear_norm(true.unflatten(1, size)),
            "zero_loss": float(true[~observed].square().mean()),
            "clipped": clipped_share(task, len(batch), seed),
        },
        {"solver": ["model", "nuclear norm"]},
    )


def clipped_share(task: MatrixCompletion, n: int = 1024, seed: int = 0) -> float:
    """Share of entries beyond the largest token's value, before rounding, in `task.sample(n, seed=seed)`."""
    entries = task.entries(n, generator(seed, "cpu"))
    return float((entries.abs() > task.limit + task.precision / 2).float().mean())


def mean_nuclear_norm(x: Float[Tensor, "batch row col"]) -> float:
    """Mean over matrices of the sum of their singular values."""
    return float(torch.linalg.svdvals(x.double()).sum(-1).mean())
