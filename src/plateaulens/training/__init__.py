"""How it learns: the `Training` iterator, its config and exact state."""

from plateaulens.training.config import TrainConfig
from plateaulens.training.loop import Step, Training, train

__all__ = ["Step", "TrainConfig", "Training", "train"]
