"""The trainings of arXiv 2505.03997: each task at the paper's size and small enough for a laptop, and the grid of runs.

run = SMALL_RECIPES["binary-addition"].record("runs/quiet/addition-0", seed=0)
for recipe in grid("bfs", [1e9, 1e10]):      # a plain list of recipes: loop over it as you like
    recipe.record(...)
"""

from collections.abc import Sequence

from plateaulens._registry import look_up
from plateaulens.models.config import transformer_pp
from plateaulens.papers.quiet_features.scaling_law import mean_length, steps_for
from plateaulens.papers.recipe import Recipe
from plateaulens.tasks import (
    ActivitySelection,
    BinaryAddition,
    BreadthFirstSearch,
    DepthFirstSearch,
    MajorityOfMajorities,
    MaximumSubarray,
    MinimumSpanningTree,
    Multiplication,
    ShortestPath,
    Task,
    TopologicalSort,
)
from plateaulens.training.config import TrainConfig

WIDTHS, DEPTHS = (8, 16, 32, 64, 128, 256, 512), (4, 16)
RATES, BATCHES = (1e-1, 1e-2, 1e-3, 1e-4), (8, 64)
MOST = 100_000  # steps; what needs more is left out


def schedule(steps: int, lr: float = 1e-3, batch_size: int = 64) -> TrainConfig:
    """How the paper trains: AdamW, a tenth of the steps to warm up, half a cosine down to a tenth of the peak."""
    warmup = steps // 10
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        optimizer="adamw",
        betas=(0.9, 0.95),
        weight_decay=0.1,
        grad_clip=1.0,
        schedule="cosine",
        warmup=warmup,
        lr_start=0.01 if warmup else 0.0,
        lr_end=0.1,
    )


def _recipe(task: Task, d_model: int, n_layers: int, steps: int, lr: float, batch_size: int = 64) -> Recipe:
    return Recipe(task=task, model=transformer_pp(d_model, n_layers), train=schedule(steps, lr, batch_size))


# Task sizes of the paper's main figures. The paper trains a `grid` over widths, depths, learning rates and batch sizes
# for each; these are the runs of width 64, 4 layers, batch 64 and learning rate 1e-3 that 1e13 operations pay for.
RECIPES: dict[str, Recipe] = {
    "binary-addition": _recipe(BinaryAddition(), 64, 4, 2386, 1e-3),
    "multiplication": _recipe(Multiplication(), 64, 4, 1819, 1e-3),
    "majority": _recipe(MajorityOfMajorities(), 64, 4, 1819, 1e-3),
    "subarray": _recipe(MaximumSubarray(), 64, 4, 1199, 1e-3),
    "activities": _recipe(ActivitySelection(), 64, 4, 3136, 1e-3),
    "bfs": _recipe(BreadthFirstSearch(), 64, 4, 1748, 1e-3),
    "dfs": _recipe(DepthFirstSearch(), 64, 4, 1748, 1e-3),
    "path": _recipe(ShortestPath(), 64, 4, 1975, 1e-3),
    "topological": _recipe(TopologicalSort(), 64, 4, 1760, 1e-3),
    "mst": _recipe(MinimumSpanningTree(), 64, 4, 1553, 1e-3),
}
# Sizes of docs/quiet.md, for a CPU. The schedule is longer than the experiments need; `until=` stops a run early.
SMALL_RECIPES: dict[str, Recipe] = {
    "binary-addition": _recipe(BinaryAddition(bits=10), 64, 3, 1500, 3e-3),
    "multiplication": _recipe(Multiplication(bits=4), 64, 3, 1500, 1e-3),
    "majority": _recipe(MajorityOfMajorities(bits=20), 64, 2, 2000, 1e-3),
    "subarray": _recipe(MaximumSubarray(length=12), 32, 2, 6000, 2e-3),
    "activities": _recipe(ActivitySelection(n=6), 64, 3, 1500, 1e-3),
    "bfs": _recipe(BreadthFirstSearch(nodes=6, answer_only=True), 64, 3, 1500, 2e-3),
    "dfs": _recipe(DepthFirstSearch(nodes=6, answer_only=True), 64, 3, 1500, 1e-3),
    "path": _recipe(ShortestPath(nodes=6, answer_only=True), 64, 3, 1500, 1e-3),
    "topological": _recipe(TopologicalSort(nodes=5, answer_only=True), 64, 3, 1500, 1e-3),
    "mst": _recipe(MinimumSpanningTree(nodes=5, answer_only=True), 64, 3, 1500, 1e-3),
}


def grid(name: str, budgets: Sequence[float], widths: Sequence[int] = WIDTHS, task: Task | None = None) -> list[Recipe]:
    """Every recipe of the paper's grid that the budgets pay for: widths x depths x learning rates x batch sizes.

    Args:
        name: of the task.
        budgets: in floating-point operations, as `plateaulens.papers.quiet_features.scaling_law.flops` counts them.
        widths: of the model.
        task: another size of it.

    Raises:
        ValueError: for an unknown name.
    """
    task = look_up("recipe", name, RECIPES).task if task is None else task
    length, found = mean_length(task), []
    for budget in budgets:
        for d, depth, batch in ((d, depth, batch) for d in widths for depth in DEPTHS for batch in BATCHES):
            steps = steps_for(budget, d_model=d, n_layers=depth, batch_size=batch, length=length)
            if steps <= MOST:
                found += [_recipe(task, d, depth, steps, lr, batch) for lr in RATES]
    return found
