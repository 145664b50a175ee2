"""One forward pass of a model, read through hooks."""

from plateaulens.tracing.traces import FINAL, Trace, trace

__all__ = ["FINAL", "Trace", "trace"]
