"""Training: the `Training` iterator with its exact state, and its config."""

from plateaulens.training.config import TrainConfig
from plateaulens.training.loop import Step, Training, train

__all__ = ["Step", "TrainConfig", "Training", "train"]
