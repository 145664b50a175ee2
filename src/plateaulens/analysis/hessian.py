"""Sharpness: the largest eigenvalue of the Hessian of the loss, over training steps."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from plateaulens.analysis.checkpoint_steps import chosen_steps
from plateaulens.batch import Batch
from plateaulens.hooks import device_of
from plateaulens.protocols import CheckpointSeries, HookedModel


def largest_hessian_eigenvalue(
    model: nn.Module | HookedModel, batch: Batch, *, tolerance: float = 1e-3, iterations: int = 100, seed: int = 0
) -> float:
    """Largest eigenvalue of the Hessian of the task's loss on `batch` with respect to all parameters.

    Lanczos with full reorthogonalization on Hessian-vector products (two backward passes each); the Hessian itself is
    never formed. Memory: one parameter vector per iteration.

    Args:
        model: The model; its weights and gradients are not changed.
        batch: The examples; the loss is that of `batch.task`, in nats.
        tolerance: Relative change of the eigenvalue at which to stop.
        iterations: Largest number of products with the Hessian.
        seed: Seed of the starting vector.

    Raises:
        ValueError: If the eigenvalue still changes by more than `tolerance` after `iterations`.
    """
    parameters, batch = [p for p in model.parameters() if p.requires_grad], batch.to(device_of(model))
    with torch.enable_grad():
        loss = batch.task.loss(model(batch.inputs), batch)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        parts = [v.view_as(p) for v, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]
        return parameters_to_vector(
            [g.contiguous() for g in torch.autograd.grad(gradient, parameters, parts, retain_graph=True)]
        )

    size = sum(p.numel() for p in parameters)
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(parameters[0])
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    value = float("nan")
    for _ in range(min(iterations, size)):
        new = product(basis[-1])
        diagonal.append(new @ basis[-1])
        for _twice in range(2):  # once is not enough in float32
            vectors = torch.stack(basis)
            new = new - vectors.T @ (vectors @ new)
        previous, value = value, float(torch.linalg.eigvalsh(_tridiagonal(diagonal, off_diagonal))[-1])
        if abs(value - previous) <= tolerance * abs(value) or new.norm() <= 1e-6 * abs(value):
            return value
        off_diagonal.append(new.norm())
        basis.append(new / new.norm())
    if len(diagonal) == size:
        return value
    raise ValueError(
        f"the largest eigenvalue has not converged in {iterations} iterations (now {value:.4g}); pass more iterations="
    )


def sharpness(
    run: CheckpointSeries,
    batch: Batch,
    steps: Sequence[int] | None = None,
    *,
    tolerance: float = 1e-3,
    iterations: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute `largest_hessian_eigenvalue` at the checkpoints of `run`.

    Args:
        run: A Run or a suite of checkpoints.
        batch: The examples.
        steps: Steps of the checkpoints; by default all.
        tolerance: As for `largest_hessian_eigenvalue`.
        iterations: As for `largest_hessian_eigenvalue`.
        seed: As for `largest_hessian_eigenvalue`.

    Returns:
        A DataFrame with a column `sharpness`, by step.

    Raises:
        ValueError: If there is no checkpoint, or an eigenvalue has not converged.
    """
    steps = chosen_steps(run, steps)
    options: dict[str, Any] = {"tolerance": tolerance, "iterations": iterations, "seed": seed}
    values = [largest_hessian_eigenvalue(run.model(step), batch, **options) for step in steps]
    return pd.DataFrame({"sharpness": values}, index=pd.Index(steps, name="step"))


def _tridiagonal(diagonal: list[Tensor], off_diagonal: list[Tensor]) -> Tensor:
    matrix = torch.diag(torch.stack(diagonal))
    if off_diagonal:
        beside = torch.stack(off_diagonal)
        matrix = matrix + torch.diag(beside, 1) + torch.diag(beside, -1)
    return matrix.double()
