"""The run folder, and the training loop that fills it."""

from plateaulens.runs.recording import record, resume
from plateaulens.runs.run import Run

__all__ = ["Run", "record", "resume"]
