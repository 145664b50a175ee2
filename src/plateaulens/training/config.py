"""`TrainConfig`: how a model learns."""

from dataclasses import dataclass

from plateaulens._lookup import look_up

OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimiser, length and data seed of a training; frozen, goes to JSON and comes back equal.

    Defaults are the settings of arXiv 2506.13688 for moving-window sum.

    Attributes:
        steps: optimiser updates.
        batch_size: fresh sequences an update.
        lr: learning rate, constant.
        optimizer: "adam", "adamw" or "sgd" (torch's).
        weight_decay: torch's default of 0 for all three; AdamW applies it to every parameter.
        grad_clip: largest global gradient norm, or None.
        seed: of the data; batch t is a pure function of (seed, t).

    Raises:
        ValueError: for a value out of range or an unknown optimiser.
    """

    steps: int = 400
    batch_size: int = 256
    lr: float = 1e-4
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    weight_decay: float = 0.0
    grad_clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        look_up("optimizer", self.optimizer, {name: name for name in OPTIMIZERS})
