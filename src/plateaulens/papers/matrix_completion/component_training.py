"""Training of single components from initial weights, all others being a trained model's (arXiv 2410.22244, fig. 8).

    trained = train_components(SMALL_RECIPES["matrix"], run, "runs/matrix/components", steps=6000)
    pl.plots.seeds({name: [component_run] for name, component_run in trained.items()}, ["masked_loss"])

From a shell: `plateaulens matrix components RUN`.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from plateaulens._registry import look_up
from plateaulens.papers.recipe import Recipe
from plateaulens.runs.run import Run

# Parameter groups of `bert`; each parameter is in exactly one.
PARTS = ("embed", "pos", "ln_embed", "qk", "ov", "ln1", "mlp", "ln2", "unembed")
# Figure 8 has the first four components; the released script trains the fifth.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "token embeddings": ("embed",),
    "position embeddings": ("pos",),
    "mlp": ("mlp",),
    "attention": ("qk", "ov"),
    "all embeddings": ("embed", "pos", "ln_embed"),
}


def component_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """For each component, `recipe` with everything else frozen at a trained model's weights (fig. 8).

    The recipes need a `donor`, and another seed than the donor's, or the component starts at the donor's initial
    weights and is trained on the same matrices.
    """
    frozen = {name: tuple(part for part in PARTS if part not in trained) for name, trained in COMPONENTS.items()}
    return {name: replace(recipe, frozen=parts, optimal=True, figure="8") for name, parts in frozen.items()}


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
    """Record a training for each component, resuming those that were interrupted; returns their runs by name.

    Args:
        recipe: Recipe of the whole model.
        donor: Finished run of it, whose last checkpoint has the weights of the other components.
        folder: Folder for one run per component.
        names: Names in `COMPONENTS`.
        steps: Steps of each training; the recipe's by default.
        seed: Seed of the component's initial weights and of the matrices.
        options: As in `Recipe.record`.

    Raises:
        ValueError: For an unknown component, or a folder that has another training.
    """
    if steps is not None:
        recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    recipes = {name: look_up("component", name, component_recipes(recipe)) for name in names}
    return {
        name: component.record(Path(folder) / name.replace(" ", "-"), seed=seed, donor=donor, **options)
        for name, component in recipes.items()
    }
