"""A model on other matrices than it learned, beside the least nuclear norm (arXiv 2410.22244, figs. 3 and 19).

hidden = {p: replace(task, p_mask=p) for p in (0.1, 0.3, 0.5)}
evaluate_ood(model, hidden).masked_loss
"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm
from plateaulens.tasks.base import generator
from plateaulens.tasks.matrices.completion import MatrixBatch, MatrixCompletion
from plateaulens.tasks.matrices.metrics import mean_over_cells
from plateaulens.tracing.traces import trace

PASS = 1024  # matrices at once


def evaluate_ood(
    model: Any,
    tasks: Mapping[Any, MatrixCompletion],
    *,
    n: int = 1024,
    seed: int = 0,
    learned: MatrixCompletion | None = None,
) -> xr.Dataset:
    """The losses of a model and of nuclear-norm minimization on the same fresh matrices of each task.

    A smaller matrix is read row by row at the first positions, so that other columns put a cell elsewhere.

    Args:
        model: any hooked model with one number a position.
        tasks: by what is shifted: a number, or a name.
        n: matrices of each task.
        seed: of the matrices.
        learned: what the model was trained on. A model knows only how many tokens there are, not what they stand for:
            without it, another precision with as many tokens is taken for the model's.

    Returns:
        Over shift and by whom, "model" or "nuclear norm": `loss`, `observed_loss` and `masked_loss`, mean squared
        errors over cells, and `size`, the mean nuclear norm of what is said. Over shift: `true_size`, that of the true
        matrices; `zero_loss`, the mean square of hidden entries; `clipped`, the share of entries beyond the greatest
        token, which are neither shown nor asked for as they are.

    Raises:
        ValueError: for no task, another vocabulary than the model's, values of tokens that are not those of `learned`,
            or more cells than the model has positions.
    """
    if not tasks:
        raise ValueError("nothing to measure: got no task")
    for task in tasks.values():
        if task.d_vocab != model.cfg.d_vocab:
            raise ValueError(
                f"{task!r} has {task.d_vocab} tokens, the model {model.cfg.d_vocab}; keep precision and limit"
            )
        if learned is not None and (task.precision, task.limit) != (learned.precision, learned.limit):
            raise ValueError(
                f"{task!r} has tokens of other values than {learned!r}, which was learned; keep precision and limit"
            )
        if task.n_ctx > model.cfg.n_ctx:
            raise ValueError(
                f"{task.rows} x {task.cols} are {task.n_ctx} cells, and the model knows {model.cfg.n_ctx} positions; "
                "positions beyond were never trained"
            )
    each = [_losses(model, task, task.sample(n, seed=seed), seed) for task in tasks.values()]
    return xr.concat(each, xr.Variable("shift", list[Hashable](tasks)))


def _losses(model: Any, task: MatrixCompletion, batch: MatrixBatch, seed: int) -> xr.Dataset:
    size = (task.rows, task.cols)
    shown, truth = batch.observed, batch.values
    parts = (batch[i : i + PASS] for i in range(0, len(batch), PASS))
    said = torch.cat([trace(model, part, ["outputs"]).outputs.cpu() for part in parts])
    completed = complete_by_nuclear_norm(truth.unflatten(1, size), shown.unflatten(1, size)).flatten(1)
    rows = []
    for outputs in (said, completed):
        error = (outputs - truth).square()
        apart = [mean_over_cells(error, cells).mean() for cells in (torch.ones_like(shown), shown, ~shown)]
        rows.append([*map(float, apart), mean_nuclear_norm(outputs.unflatten(1, size))])
    by = zip(("loss", "observed_loss", "masked_loss", "size"), zip(*rows))
    return xr.Dataset(
        {
            **{name: ("by", list(values)) for name, values in by},
            "true_size": mean_nuclear_norm(truth.unflatten(1, size)),
            "zero_loss": float(truth[~shown].square().mean()),
            "clipped": clipped_share(task, len(batch), seed),
        },
        {"by": ["model", "nuclear norm"]},
    )


def clipped_share(task: MatrixCompletion, n: int = 1024, seed: int = 0) -> float:
    """The share of entries beyond the greatest token, of the matrices that `task.sample(n, seed=seed)` rounds."""
    entries = task.entries(n, generator(seed, "cpu"))
    return float((entries.abs() > task.limit + task.precision / 2).float().mean())


def mean_nuclear_norm(x: Float[Tensor, "batch row col"]) -> float:
    """The mean over matrices of the sum of their singular values."""
    return float(torch.linalg.svdvals(x.double()).sum(-1).mean())
