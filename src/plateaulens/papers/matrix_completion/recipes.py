"""The trainings of arXiv 2410.22244: BERT on matrix completion, at the paper's size and for a laptop.

    run = SMALL_RECIPES["matrix"].record("runs/matrix/0", seed=0)

The paper's size needs a GPU: a step is 2.1e12 floating-point operations. "matrix-mixture" is measured on one held-out
batch, hence on one of its sizes (the paper follows each); of "matrix-sequence" no measure is of the shown cells alone.

    trained = train_components(SMALL_RECIPES["matrix"], run, "runs/matrix/parts", steps=6000)     # fig. 8
    pl.plots.seeds({name: [own] for name, own in trained.items()}, ["masked_loss"])

`plateaulens matrix components RUN` is that from a shell.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from plateaulens._registry import look_up
from plateaulens.models.config import bert
from plateaulens.papers.recipe import Recipe
from plateaulens.runs.run import Run
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

PARTS = ("embed", "pos", "ln_embed", "qk", "ov", "ln1", "mlp", "ln2", "unembed")  # of `bert`, each parameter in one
# What is trained alone. Figure 8 has the first four; the released script trains the last, all in one.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "token embeddings": ("embed",),
    "position embeddings": ("pos",),
    "mlp": ("mlp",),
    "attention": ("qk", "ov"),
    "all embeddings": ("embed", "pos", "ln_embed"),
}


def components(recipe: Recipe) -> dict[str, Recipe]:
    """One component trained from its initial weights, all else being a trained model's and fixed (fig. 8).

    The recipes need a `donor`, and another seed than its own to start elsewhere and see other matrices.
    """
    rest = {name: tuple(part for part in PARTS if part not in own) for name, own in COMPONENTS.items()}
    return {name: replace(recipe, frozen=frozen, optimal=True, figure="fig. 8") for name, frozen in rest.items()}


def train_components(
    recipe: Recipe,
    donor: Run,
    folder: str | Path,
    names: Iterable[str] = COMPONENTS,
    *,
    steps: int | None = None,
    seed: int = 1,
    **options: Any,
) -> dict[str, Run]:
    """Record the trainings of single components, or finish what an earlier call left.

    Args:
        recipe: of the whole model.
        donor: a finished run of it, whose last weights the other components keep.
        folder: for one run a component.
        names: of `COMPONENTS`.
        steps: of each training; the recipe's by default.
        seed: of the component's initial weights and of the matrices.
        options: as of `Recipe.record`.

    Raises:
        ValueError: for an unknown component, or a folder that holds another training.
    """
    if steps is not None:
        recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    chosen = {name: look_up("component", name, components(recipe)) for name in names}
    return {
        name: own.record(Path(folder) / name.replace(" ", "-"), seed=seed, donor=donor, **options)
        for name, own in chosen.items()
    }
