"""The `plateaulens` command."""

from plateaulens.cli import checkpoints, matrix_completion, pretrain, probing, training
from plateaulens.cli.base import main

__all__ = ["checkpoints", "main", "matrix_completion", "pretrain", "probing", "training"]
