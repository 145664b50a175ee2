"""`TrainConfig`: optimizer, learning rate schedule, length and data seed of a training."""

from dataclasses import dataclass
from typing import Literal

from plateaulens._registry import check_choices


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimizer, length and data seed of a training; frozen, and equal after a round trip through JSON.

    Defaults are the settings of arXiv 2506.13688 for moving-window sum.

    Attributes:
        steps: Number of optimizer updates.
        batch_size: Number of new sequences in each update.
        lr: Learning rate after warm-up; with Muon the rate of the hidden matrices (0.02 in the paper).
        optimizer: "adam", "adamw", "sgd" or "muon", of torch. Muon trains the matrices inside the blocks, and AdamW
            all other parameters.
        betas: Betas of Adam and AdamW.
        momentum: Momentum of SGD and Muon; None for 0 (SGD) and 0.95 (Muon).
        adam_lr: Learning rate of the parameters that AdamW trains beside Muon; None for 1e-4.
        schedule: "constant"; "cosine" (half a cosine down to `lr_end`); or "wsd" (constant, then linearly down to
            `lr_end` over the last `decay` updates).
        warmup: Number of updates over which the rate rises linearly from `lr_start`.
        decay: Number of updates of the decay of "wsd".
        lr_start: Rate at the start of the warm-up, as a fraction of `lr`.
        lr_end: Rate at the end of "cosine" and "wsd", as a fraction of `lr`.
        weight_decay: Weight decay of every parameter.
        grad_clip: Largest global norm of the gradient; None for no clipping.
        seed: Seed of the data; the batch of step t is a pure function of (seed, t).

    Raises:
        ValueError: for a value out of range, an unknown choice, or an option that the optimizer or schedule ignores.
    """

    steps: int = 400
    batch_size: int = 256
    lr: float = 1e-4
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float | None = None
    adam_lr: float | None = None
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    warmup: int = 0
    decay: int = 0
    lr_start: float = 0.0
    lr_end: float = 0.0
    weight_decay: float = 0.0
    grad_clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        self._check_ranges()
        self._check_schedule()
        for name, optimizers in (("momentum", ("sgd", "muon")), ("adam_lr", ("muon",))):
            if getattr(self, name) is not None and self.optimizer not in optimizers:
                raise ValueError(
                    f"{name} applies to {' and '.join(optimizers)}; with {self.optimizer!r} it would have no effect"
                )

    def _check_ranges(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "adam_lr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("lr_start", "lr_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction of lr, from 0 to 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def _check_schedule(self) -> None:
        if self.lr_start and not self.warmup or self.lr_end and self.schedule == "constant":
            raise ValueError(
                "lr_start applies to a warm-up, lr_end to 'cosine' and 'wsd'; here they would have no effect"
            )
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must be in 0..steps-1={self.steps - 1}, got {self.warmup}")
        if (self.schedule == "wsd") != (self.decay > 0) or self.decay > self.steps - self.warmup:
            raise ValueError(
                f"decay applies to schedule 'wsd' and must be in 1..steps-warmup={self.steps - self.warmup}, "
                f"got decay={self.decay} with schedule {self.schedule!r}"
            )
