"""The same verbs from a shell: parses, calls, prints a path. Bad input is one line and exit status 2."""

from plateaulens.cli import checkpoints, matrices, pretraining, quiet, training
from plateaulens.cli.base import main

__all__ = ["checkpoints", "main", "matrices", "pretraining", "quiet", "training"]
