"""The trainings of arXiv 2506.13688 at the paper's size (`RECIPES`) and small enough for a laptop (`SMALL_RECIPES`).

recipe = RECIPES["prefix"]
run = recipe.record("runs/prefix-0", seed=0)
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from plateaulens._registry import look_up
from plateaulens.analysis.plateau import find_plateau, first_crossing
from plateaulens.papers.recipe import Recipe
from plateaulens.runs.run import Run
from plateaulens.tasks import (
    Addition,
    Copy,
    Histogram,
    MovingWindowSum,
    Permutation,
    PrefixSum,
    Repeat,
    Reverse,
    Task,
    WindowMix,
)
from plateaulens.training.config import TrainConfig


def _paper(task: Task, steps: int, figure: str, **train_fields: Any) -> Recipe:
    return Recipe(task=task, train=TrainConfig(steps=steps, **train_fields), figure=figure)


def _small(task: Task, steps: int, like: Recipe) -> Recipe:
    """The recipe with width 64, batches of 64 and learning rate 1e-3: seconds to minutes on one core."""
    train_config = replace(like.train, steps=steps, batch_size=64, lr=1e-3)
    return replace(like, task=task, model={"d_model": 64}, train=train_config)


# Sizes of the paper's released code: 256 sequences an update, Adam at 1e-4, width 256, one head.
RECIPES: dict[str, Recipe] = {
    "mws": _paper(MovingWindowSum(), 400, "2"),
    "mix": _paper(WindowMix(), 5000, "19"),
    "prefix": _paper(PrefixSum(), 1000, "6, 11, 12"),
    "addition": _paper(Addition(), 10000, "9, 10"),
    "permutation": _paper(Permutation(), 2000, "13, 14"),
    "histogram": _paper(Histogram(), 5000, "15, 16", grad_clip=1.0),
    "copy": _paper(Copy(), 100, "18"),
    "reverse": _paper(Reverse(), 100, "17"),
    "repeat": _paper(Repeat(), 200, "7"),
    "repeat-2": _paper(Repeat(k=2), 200, "21"),
    "repeat-4": _paper(Repeat(k=4), 200, "22"),
}
SMALL_RECIPES: dict[str, Recipe] = {
    "mws": _small(MovingWindowSum(n=8), 600, RECIPES["mws"]),
    "mix": _small(WindowMix(n=8, mix=((1, 1, 3), (2, 3, 5), (3, 5, 6))), 1500, RECIPES["mix"]),
    "prefix": _small(PrefixSum(n=8), 1000, RECIPES["prefix"]),
    "addition": _small(Addition(n=2), 2000, RECIPES["addition"]),
    "permutation": _small(Permutation(n=8), 2500, RECIPES["permutation"]),
    "histogram": _small(Histogram(n=8, max_value=6), 5000, RECIPES["histogram"]),
    "copy": _small(Copy(n=8), 200, RECIPES["copy"]),
    "reverse": _small(Reverse(n=8), 200, RECIPES["reverse"]),
    "repeat": _small(Repeat(n=8), 200, RECIPES["repeat"]),
    "repeat-2": _small(Repeat(n=8, k=2), 300, RECIPES["repeat-2"]),
    "repeat-4": _small(Repeat(n=12, k=4), 400, RECIPES["repeat-4"]),
}


# Changes of the moving-window sum (figs. 3 to 5, 30 to 35, 43): the fields that differ from the recipe "mws".
# Steps are those of the released configs, or as many as the paper's curves show where no config was released.
_CHANGES: dict[str, dict[str, Any]] = {
    "scale-0.2": dict(scale=0.2, steps=2000, figure="3, 4"),
    "scale-0.5": dict(scale=0.5, steps=2000, figure="3, 4"),
    "scale-2.5": dict(scale=2.5, figure="3, 4"),
    "scale-10": dict(scale=10.0, figure="3, 4"),
    **{f"scale-10-from-{t}": dict(scale=10.0, from_step=t, figure="43") for t in (25, 50, 75, 100)},
    **{
        f"optimal-{parts}": dict(frozen=(parts,), optimal=True, figure="5")
        for parts in ("KQ", "KQOV", "MLP", "Embedding")
    },
    **{f"random-{part}": dict(frozen=(part,)) for part in ("attn", "mlp", "embed", "pos", "norms", "unembed")},
    "softmax": dict(model=dict(attention="softmax"), steps=2000, figure="30"),
    "init-10": dict(model=dict(init_scale=10.0)),
    "sgd": dict(train=dict(optimizer="sgd", lr=0.3), steps=5000, figure="31"),
    "muon": dict(train=dict(optimizer="muon", lr=0.02), figure="32"),
    "muon-init-10": dict(model=dict(init_scale=10.0), train=dict(optimizer="muon", lr=0.02), figure="33"),
    "warmup": dict(train=dict(warmup=200), figure="34"),
    "warmup-cosine": dict(train=dict(warmup=200, schedule="cosine"), figure="35"),
}


def _changed(like: Recipe, *, steps: int | None = None, **values: Any) -> Recipe:
    """The recipe `like` with a change; `steps` are those at the paper's size and are scaled to that of `like`."""
    size_ratio = like.train.steps / RECIPES["mws"].train.steps
    n_steps = like.train.steps if steps is None else round(steps * size_ratio)
    model, learning = {**like.model, **values.pop("model", {})}, values.pop("train", {})
    return replace(like, model=model, train=replace(like.train, steps=n_steps, **learning), **values)


CONTROL = "mws"
RECIPES |= {name: _changed(RECIPES[CONTROL], **change) for name, change in _CHANGES.items()}
SMALL_RECIPES |= {name: _changed(SMALL_RECIPES[CONTROL], **change) for name, change in _CHANGES.items()}
GROUPS: dict[str, tuple[str, ...]] = {
    "tasks": tuple(name for name in RECIPES if name not in _CHANGES),
    "changes": (CONTROL, *_CHANGES),
}


def reproduce(
    names: Iterable[str], out: str | Path, *, seeds: int = 3, small: bool = False, device: str = "cpu"
) -> Iterator[tuple[str, Run]]:
    """Train the named recipes with seeds 0, 1, ...; unfinished runs are resumed and finished ones are kept.

    Optimal parts are those of the control ("mws") with the next seed, so that the frozen parts come from another
    initialization than the rest.

    Args:
        names: Names of `RECIPES` or `GROUPS`; all tasks if empty.
        out: Folder of the runs, which are named `NAME-SEED`.
        seeds: Number of seeds.
        small: Whether to use `SMALL_RECIPES`.
        device: Device to train on.

    Returns:
        An iterator over the name and the finished run of each training.

    Raises:
        ValueError: For an unknown name, before anything is trained.
    """
    table = SMALL_RECIPES if small else RECIPES
    wanted = [name for given in (list(names) or ["tasks"]) for name in GROUPS.get(given, (given,))]
    recipes = {name: look_up("recipe", name, table) for name in wanted}
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")

    def run_of(name: str, seed: int) -> Run:
        recipe = table[name]
        donor = run_of(CONTROL, (seed + 1) % max(seeds, 2)) if recipe.optimal else None
        return recipe.record(Path(out) / f"{name}-{seed}", seed=seed, donor=donor, device=device)

    return ((name, run_of(name, seed)) for name in recipes for seed in range(seeds))


def summary(run: Run) -> dict[str, Any]:
    """Summarize a run in numbers: one row of docs/mws.md and docs/tasks.

    The plateau, from its start until the loss leaves it, is that of `find_plateau`; its losses are medians.

    Returns:
        Values by name: steps, losses in nats, and shares; None for a step that was not reached.
    """
    m = run.metrics
    plateau, half = find_plateau(run), first_crossing(m.accuracy, 0.5)
    on_plateau = m.loc[plateau.start : plateau.end] if plateau.start is not None else m.iloc[:0]
    peak_step = m.collapse.idxmax() if m.collapse.notna().any() else None
    values: dict[str, Any] = {"seed": run.config["model"]["seed"]}
    if peak_step is not None:
        values["collapse < 0.9"] = first_crossing(m.collapse.loc[peak_step:], 0.9, above=False)
    values |= {
        "plateau from": plateau.start,
        "loss leaves": plateau.end,
        "acc > 0.5": half,
        "acc > 0.95": first_crossing(m.accuracy, 0.95),
        "plateau loss": on_plateau.loss.median(),
        "plateau answer loss": on_plateau.answer_loss.median(),
        "peak collapse": m.collapse.max(),
        "peak repetition": m.repetition.max(),
    }
    if "attention_progress" in m:
        progress = m.attention_progress
        values |= {
            "APM start": progress.iloc[0],
            "APM min": progress.min(),
            "APM leaving": progress.get(plateau.end),
            "APM acc > 0.5": progress.get(half),
            "APM end": progress.iloc[-1],
        }
    return values | {"loss end": m.loss.iloc[-1], "accuracy end": m.accuracy.iloc[-1]}
