"""Attention, cosine similarities and answers at every checkpoint, for plots and the explorer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from plateaulens.analysis.checkpoint_steps import chosen_steps
from plateaulens.batch import Batch
from plateaulens.hooks import PATTERN_HOOKS
from plateaulens.metrics.functional.geometry import cosine_matrix
from plateaulens.metrics.functional.precision import at_least_float32
from plateaulens.protocols import CheckpointSeries
from plateaulens.tracing.traces import FINAL, trace


@dataclass(frozen=True, eq=False)
class CheckpointTraces:
    """Attention and cosine similarities by step, averaged over the batch, and the answers.

    Attributes:
        steps: Steps of the checkpoints.
        pattern: Attention, averaged over the batch.
        cosine: cos(h_i, h_j) of the hidden states after the final norm that predict the answer, averaged over the
            batch.
        generated: Greedily decoded answer to each prompt.
        batch: The prompts.
    """

    steps: list[int]
    pattern: Float[np.ndarray, "step layer head query key"]
    cosine: Float[np.ndarray, "step out out"]
    generated: Int[np.ndarray, "step batch out"]
    batch: Batch


def trace_checkpoints(run: CheckpointSeries, batch: Batch, steps: Sequence[int] | None = None) -> CheckpointTraces:
    """Trace the checkpoints of `run` on `batch`.

    Args:
        run: A Run or a suite of checkpoints.
        batch: The prompts.
        steps: Steps of the checkpoints; by default all.

    Raises:
        ValueError: If there is no checkpoint.
    """
    steps = chosen_steps(run, steps)
    patterns, cosines, answers = [], [], []
    for step in steps:
        t = trace(run.model(step), batch, [PATTERN_HOOKS, FINAL, "generated"])
        maps = t.pattern()
        patterns.append(np.stack([at_least_float32(maps[layer]).mean(0).cpu().numpy() for layer in range(t.n_layers)]))
        cosine, both_valid = cosine_matrix(t.at_answers(t.cache[FINAL])), t.valid[:, :, None] & t.valid[:, None]
        cosines.append(cosine.masked_fill(~both_valid, float("nan")).nanmean(0).cpu().numpy())
        answers.append(t.generated.cpu().numpy())
    return CheckpointTraces(steps, np.stack(patterns), np.stack(cosines), np.stack(answers), batch)
