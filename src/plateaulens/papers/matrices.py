"""The trainings of arXiv 2410.22244: BERT on matrix completion at the paper's size, and one for a laptop.

    run = RECIPES["matrix-small"].record("runs/matrix/0", seed=0)

The paper's size needs a GPU: a step is 2.1e12 floating-point operations.
"""

from plateaulens.models.config import bert
from plateaulens.papers.recipe import Recipe
from plateaulens.tasks import MatrixCompletion, MatrixMixture, MatrixSequence
from plateaulens.training import TrainConfig

PAPER = TrainConfig(steps=50_000, batch_size=256, lr=1e-4)
DECODER = {"d_model": 256, "n_layers": 2, "n_heads": 2, "attention": "softmax"}
# Rank 1 with factors away from 0: the product of three corners of a rectangle tells much of the fourth, and the
# plateau ends within minutes.
SMALL = MatrixCompletion(rows=4, cols=4, rank=1, factors="bounded", precision=0.1, limit=1.0)

RECIPES: dict[str, Recipe] = {
    "matrix": Recipe(task=MatrixCompletion(), model=bert(), train=PAPER),
    "matrix-mixture": Recipe(task=MatrixMixture(), model=bert(), train=PAPER),
    "matrix-sequence": Recipe(
        task=MatrixSequence(), model=DECODER, train=TrainConfig(steps=100_000, batch_size=256, lr=1e-4)
    ),
    "matrix-small": Recipe(task=SMALL, model=bert(64, 2, 4), train=TrainConfig(steps=10_000, batch_size=64, lr=1e-3)),
}
