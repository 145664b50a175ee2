"""The trainings of arXiv 2410.22244: BERT on matrix completion, at the paper's size and for a laptop.

    run = SMALL_RECIPES["matrix"].record("runs/matrix/0", seed=0)

The paper's size needs a GPU: a step of "matrix" is 2.1e12 floating-point operations. "matrix-mixture" is measured on
one evaluation batch, hence on matrices of one of its sizes (the paper measures each size); no metric of
"matrix-sequence" is restricted to the observed cells.
"""

from dataclasses import replace
from typing import Any

from plateaulens.models.config import bert
from plateaulens.papers.recipe import Recipe
from plateaulens.tasks import MatrixCompletion, MatrixMixture, MatrixSequence
from plateaulens.training.config import TrainConfig

PAPER = TrainConfig(steps=50_000, batch_size=256, lr=1e-4)
DECODER = {"n_layers": 2, "attention": "softmax"}
RECIPES: dict[str, Recipe] = {
    "matrix": Recipe(task=MatrixCompletion(), model=bert(), train=PAPER),
    "matrix-mixture": Recipe(task=MatrixMixture(), model=bert(), train=PAPER),
    "matrix-sequence": Recipe(
        task=MatrixSequence(), model={"d_model": 256, "n_heads": 2, **DECODER}, train=replace(PAPER, steps=100_000)
    ),
}

SMALL = TrainConfig(steps=10_000, batch_size=64, lr=1e-3)
# Rank 1 with factors away from 0: three corners of a rectangle determine much of the fourth, and the plateau ends
# within minutes. Whether the two other tasks leave theirs within 10,000 steps was not measured.
SMALL_ENTRIES: dict[str, Any] = {"rank": 1, "factors": "bounded", "precision": 0.1, "limit": 1.0}
SMALL_RECIPES: dict[str, Recipe] = {
    "matrix": Recipe(task=MatrixCompletion(rows=4, cols=4, **SMALL_ENTRIES), model=bert(64, 2, 4), train=SMALL),
    "matrix-mixture": Recipe(task=MatrixMixture(orders=(3, 4), **SMALL_ENTRIES), model=bert(64, 2, 4), train=SMALL),
    "matrix-sequence": Recipe(
        task=MatrixSequence(rows=4, cols=4, **SMALL_ENTRIES),
        model={"d_model": 64, "n_heads": 4, **DECODER},
        train=SMALL,
    ),
}
