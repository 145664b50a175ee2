"""One forward pass of a model, read through hooks; greedy decoding of a task's answers."""

from plateaulens.tracing.decoding import greedy_decode
from plateaulens.tracing.traces import FINAL, Trace, trace

__all__ = ["FINAL", "Trace", "greedy_decode", "trace"]
