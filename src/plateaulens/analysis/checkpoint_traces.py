"""What attention and representations look like at every checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from plateaulens.analysis.checkpoint_steps import chosen_steps
from plateaulens.batch import Batch
from plateaulens.hooks import PATTERN_HOOKS
from plateaulens.metrics.functional.geometry import cosine_matrix
from plateaulens.metrics.functional.precision import at_least_float32
from plateaulens.tracing.traces import FINAL, trace


@dataclass(frozen=True, eq=False)
class CheckpointTraces:
    """Batch averages by step, ready to plot.

    Attributes:
        steps: the checkpoints.
        pattern: attention, averaged over the batch.
        cosine: cos(h_i, h_j) of the output rows after the final norm, averaged over the batch.
        generated: greedy answers to each prompt.
        batch: the prompts.
    """

    steps: list[int]
    pattern: Float[np.ndarray, "step layer head query key"]
    cosine: Float[np.ndarray, "step out out"]
    generated: Int[np.ndarray, "step batch out"]
    batch: Batch


def trace_checkpoints(run: Any, batch: Batch, steps: Sequence[int] | None = None) -> CheckpointTraces:
    """Trace every checkpoint of `run` (or those of `steps`) on `batch`.

    Raises:
        ValueError: when the run has no checkpoint.
    """
    steps = chosen_steps(run, steps)
    patterns, cosines, answers = [], [], []
    for step in steps:
        t = trace(run.model(step), batch, [PATTERN_HOOKS, FINAL, "generated"])
        maps = t.pattern()
        patterns.append(np.stack([at_least_float32(maps[layer]).mean(0).cpu().numpy() for layer in range(t.n_layers)]))
        cosine, both = cosine_matrix(t.at_answers(t.cache[FINAL])), t.valid[:, :, None] & t.valid[:, None]
        cosines.append(cosine.masked_fill(~both, float("nan")).nanmean(0).cpu().numpy())
        answers.append(t.generated.cpu().numpy())
    return CheckpointTraces(steps, np.stack(patterns), np.stack(cosines), np.stack(answers), batch)
