"""The run folder `Run`, the training loop `record` that fills it, and `resume`, which continues an interrupted one."""

from plateaulens.runs.recording import record, resume
from plateaulens.runs.run import Run

__all__ = ["Run", "record", "resume"]
