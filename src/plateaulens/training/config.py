"""`TrainConfig`: how a model learns."""

from dataclasses import dataclass

from plateaulens._registry import look_up

CHOICES = {"optimizer": ("adam", "adamw", "sgd", "muon"), "schedule": ("constant", "cosine", "wsd")}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimizer, length and data seed of a training; frozen, goes to JSON and comes back equal.

    Defaults are the settings of arXiv 2506.13688 for moving-window sum.

    Attributes:
        steps: optimizer updates.
        batch_size: fresh sequences an update.
        lr: learning rate after warm-up; with Muon that of the hidden matrices (the paper's is 0.02).
        optimizer: "adam", "adamw", "sgd" or "muon" (all torch's). Muon trains the matrices inside the
            blocks, AdamW everything else.
        betas: of Adam and AdamW.
        momentum: None is 0 for SGD and 0.95 for Muon; the others have none.
        adam_lr: learning rate of what Muon leaves to AdamW; None is 1e-4.
        schedule: "constant", "cosine" (half of one, down to `lr_end`) or "wsd" (stable, then linearly down to
            `lr_end` over the last `decay` updates).
        warmup: updates over which the rate rises linearly from `lr_start`.
        lr_start: where warm-up begins, as a share of `lr`.
        lr_end: where "cosine" and "wsd" end, as a share of `lr`.
        decay: length of the decay of "wsd".
        weight_decay: 0 unless given; applied to every parameter.
        grad_clip: largest global gradient norm, or None.
        seed: of the data; batch t is a pure function of (seed, t).

    Raises:
        ValueError: for a value out of range or an unknown optimizer.
    """

    steps: int = 400
    batch_size: int = 256
    lr: float = 1e-4
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float | None = None
    adam_lr: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    decay: int = 0
    lr_start: float = 0.0
    lr_end: float = 0.0
    weight_decay: float = 0.0
    grad_clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "adam_lr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("lr_start", "lr_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of lr, from 0 to 1, got {getattr(self, name)}")
        if self.lr_start and not self.warmup or self.lr_end and self.schedule == "constant":
            raise ValueError("lr_start belongs to a warm-up, lr_end to 'cosine' and 'wsd'; here they would do nothing")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for name, allowed in CHOICES.items():
            look_up(name, getattr(self, name), {choice: choice for choice in allowed})
        for name, belongs in (("momentum", ("sgd", "muon")), ("adam_lr", ("muon",))):
            if getattr(self, name) is not None and self.optimizer not in belongs:
                raise ValueError(
                    f"{name} belongs to {' and '.join(belongs)}; with {self.optimizer!r} it would do nothing"
                )
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must lie in 0..steps-1={self.steps - 1}, got {self.warmup}")
        if (self.schedule == "wsd") != (self.decay > 0) or self.decay > self.steps - self.warmup:
            raise ValueError(
                f"decay belongs to schedule 'wsd' and must lie in 1..steps-warmup={self.steps - self.warmup}, "
                f"got decay={self.decay} with schedule {self.schedule!r}"
            )
