"""The matrix-completion tasks of arXiv 2410.22244."""

from plateaulens.tasks.matrices.completion import MatrixBatch, MatrixCompletion, MatrixMixture, MatrixSequence

__all__ = ["MatrixBatch", "MatrixCompletion", "MatrixMixture", "MatrixSequence"]
