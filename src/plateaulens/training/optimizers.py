"""Torch's optimizers for a model, and the schedule of their learning rate."""

from math import cos, pi

import torch
from torch import nn

from plateaulens.training.config import TrainConfig


def build_optimizers(model: nn.Module, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """Optimizers that together have every parameter of `model` once.

    Raises:
        ValueError: for Muon on a model without hidden matrices.
    """
    parameters = list(model.parameters())
    if cfg.optimizer == "sgd":
        return [torch.optim.SGD(parameters, lr=cfg.lr, momentum=cfg.momentum or 0.0, weight_decay=cfg.weight_decay)]
    if cfg.optimizer != "muon":
        adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
        return [adam(parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)]
    hidden = hidden_matrices(model)
    rest = [p for p in parameters if not any(p is h for h in hidden)]
    assert len(hidden) + len(rest) == len(parameters), "every parameter has one optimizer"
    momentum = 0.95 if cfg.momentum is None else cfg.momentum
    return [
        torch.optim.Muon(hidden, lr=cfg.lr, momentum=momentum, weight_decay=cfg.weight_decay),
        torch.optim.AdamW(
            rest, lr=1e-4 if cfg.adam_lr is None else cfg.adam_lr, betas=cfg.betas, weight_decay=cfg.weight_decay
        ),
    ]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The two-dimensional weights inside the blocks: what Muon is for (not embeddings, read-out, norms, biases).

    Raises:
        ValueError: when there are none, or when heads are stored as three-dimensional weights
            (3.9's HookedTransformer), whose two-dimensional parameters are biases.
    """
    inside = {name: p for name, p in model.named_parameters() if ".blocks." in f".{name}"}
    if by_head := [name for name, p in inside.items() if p.ndim > 2]:
        raise ValueError(
            f"muon needs matrices, and {by_head[0]} is stored as one per head; train a pl.Transformer, or use adamw"
        )
    matrices = [p for p in inside.values() if p.ndim == 2]
    if not matrices:
        raise ValueError("muon needs matrices named blocks.*.weight, and the model has none; use adamw")
    return matrices


def memory_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the tensors that an optimizer stores for each parameter."""
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer"}
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    return {"step", "exp_avg", "exp_avg_sq"}


def lr_factor(cfg: TrainConfig, t: int) -> float:
    """Factor on the learning rate of the update to step `t` (1, 2, ...), a pure function of t.

    After u = t-1 updates: during warm-up, linear in u / warmup from lr_start to 1, so that by default the first update
    has rate 0 (as in the code of arXiv 2506.13688). Then 1 ("constant"), half a cosine down to lr_end ("cosine"), or 1
    and in the last `decay` updates linearly down to lr_end ("wsd": warm-up, stable, decay; arXiv 2404.06395). The last
    two would reach lr_end at the update after the last one, as torch's schedulers do.
    """
    u = t - 1
    if u < cfg.warmup:
        return cfg.lr_start + (1 - cfg.lr_start) * u / cfg.warmup
    factor = 1.0
    if cfg.schedule == "cosine":
        factor = 0.5 * (1 + cos(pi * (u - cfg.warmup) / (cfg.steps - cfg.warmup)))
    elif cfg.schedule == "wsd":
        factor = min(1.0, (cfg.steps - u) / cfg.decay)
    return cfg.lr_end + (1 - cfg.lr_end) * factor
