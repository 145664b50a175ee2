"""Torch's optimizers for a model, and how their learning rate goes over the steps."""

from math import cos, pi

import torch
from torch import nn

from plateaulens.training.config import TrainConfig


def build_optimizers(model: nn.Module, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that together hold every parameter of `model` once.

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
            f"muon needs matrices, and {by_head[0]} is stored by head; train a pl.Transformer, or use adamw"
        )
    found = [p for p in inside.values() if p.ndim == 2]
    if not found:
        raise ValueError("muon needs parameters named blocks.*.weight that are matrices; found none; use adamw")
    return found


def memory_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """What an optimizer remembers of each of its parameters."""
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer"}
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    return {"step", "exp_avg", "exp_avg_sq"}


def lr_factor(cfg: TrainConfig, t: int) -> float:
    """The factor on the learning rate of the update that leads to step `t` (1, 2, ...), a pure function of t.

    With u = t-1 updates done: from lr_start up to 1 with u / warmup, so that by default the first update has rate 0
    (arXiv 2506.13688, code); then 1, or down to lr_end along half a cosine ("cosine"), or 1 until the last `decay`
    updates and linearly down to lr_end over them ("wsd": warm-up, stable, decay; arXiv 2404.06395). Both reach
    lr_end where the next update would be, as torch's schedulers do, so that with lr_end=0 no update is idle.
    """
    u = t - 1
    if u < cfg.warmup:
        return cfg.lr_start + (1 - cfg.lr_start) * u / cfg.warmup
    high = 1.0
    if cfg.schedule == "cosine":
        high = 0.5 * (1 + cos(pi * (u - cfg.warmup) / (cfg.steps - cfg.warmup)))
    elif cfg.schedule == "wsd":
        high = min(1.0, (cfg.steps - u) / cfg.decay)
    return cfg.lr_end + (1 - cfg.lr_end) * high
