"""Sharpness: the largest eigenvalue of the loss's Hessian, over training."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from plateaulens.analysis.checkpoint_steps import chosen_steps
from plateaulens.batch import Batch
from plateaulens.hooks import device_of


def largest_hessian_eigenvalue(
    model: nn.Module, batch: Batch, *, tolerance: float = 1e-3, iterations: int = 100, seed: int = 0
) -> float:
    """The largest eigenvalue of the Hessian of the task's loss on `batch` with respect to all parameters.

    Lanczos with full reorthogonalisation on Hessian-vector products (two backward passes each); the
    Hessian itself is never formed. Memory: one parameter vector an iteration.

    Args:
        model: the model; its weights and gradients are left alone.
        batch: fixed examples; the loss is that of `batch.task`, in nats.
        tolerance: relative change of the eigenvalue at which to stop.
        iterations: most products with the Hessian.
        seed: of the starting vector.

    Raises:
        ValueError: when the eigenvalue has not settled after `iterations`.
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
    beside: list[Tensor] = []
    value = float("nan")
    for _ in range(min(iterations, size)):
        new = product(basis[-1])
        diagonal.append(new @ basis[-1])
        for _twice in range(2):  # once is not enough in float32
            known = torch.stack(basis)
            new = new - known.T @ (known @ new)
        before, value = value, float(torch.linalg.eigvalsh(_tridiagonal(diagonal, beside))[-1])
        if abs(value - before) <= tolerance * abs(value) or new.norm() <= 1e-6 * abs(value):
            return value
        beside.append(new.norm())
        basis.append(new / new.norm())
    if len(diagonal) == size:
        return value
    raise ValueError(f"the largest eigenvalue has not settled in {iterations} iterations (now {value:.4g}); raise them")


def sharpness(run: Any, batch: Batch, steps: Sequence[int] | None = None, **options: Any) -> pd.DataFrame:
    """`largest_hessian_eigenvalue` at every checkpoint of `run` (or those of `steps`), as a frame by step.

    Raises:
        ValueError: when the run has no checkpoint.
    """
    steps = chosen_steps(run, steps)
    values = [largest_hessian_eigenvalue(run.model(step), batch, **options) for step in steps]
    return pd.DataFrame({"sharpness": values}, index=pd.Index(steps, name="step"))


def _tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    matrix = torch.diag(torch.stack(diagonal))
    if beside:
        off = torch.stack(beside)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    return matrix.double()
