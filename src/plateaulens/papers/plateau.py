"""The trainings of arXiv 2506.13688, at paper size and small enough for a laptop.

recipe = RECIPES["prefix"]
run = recipe.record("runs/prefix-0", seed=0)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plateaulens._lookup import look_up
from plateaulens.analysis import find_plateau, first_crossing
from plateaulens.models.config import ModelConfig
from plateaulens.models.transformer import Transformer
from plateaulens.recording import record, resume
from plateaulens.runs import Run
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
from plateaulens.training import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A task with the model and the training that the paper gives it.

    Attributes:
        task: what is learnt.
        model: fields of the `ModelConfig` beside those that the task fixes.
        train: how.
        figure: the paper's figure.
    """

    task: Task
    train: TrainConfig
    model: dict[str, Any] = field(default_factory=dict)
    figure: str = ""

    def model_config(self, seed: int = 0) -> ModelConfig:
        """The model's sizes and choices."""
        return ModelConfig.for_task(self.task, seed=seed, **self.model)

    def record(self, path: str | Path, *, seed: int = 0, device: str = "cpu", progress: bool = True) -> Run:
        """Train and measure about a hundred times, or finish what an earlier call left.

        The seed is that of the weights and of the data; 256 held-out prompts. A finished run is returned.

        Raises:
            ValueError: when the folder holds another training.
        """
        cfg = replace(self.train, seed=seed)
        if (Path(path) / "run.json").is_file():
            kept = Run(path)
            same = {"task": kept.task == self.task, "train": kept.train_config == cfg}
            same["model"] = kept.model_config == self.model_config(seed)
            if wrong := [key for key, is_same in same.items() if not is_same]:
                raise ValueError(f"{path} holds a run with another {' and '.join(wrong)}; choose another folder")
            return resume(path, device=device, progress=progress)
        training = train(Transformer(self.model_config(seed), device), self.task, cfg)
        held = self.task.sample(256, seed=1, device=device)
        every, save_every = max(5, cfg.steps // 100), max(5, cfg.steps // 10)
        return record(training, path, held, every=every, save_every=save_every, progress=progress)


def _paper(task: Task, steps: int, figure: str, **train_fields: Any) -> Recipe:
    return Recipe(task=task, train=TrainConfig(steps=steps, **train_fields), figure=figure)


def _small(task: Task, steps: int, like: Recipe) -> Recipe:
    """Width 64, batches of 64, learning rate 1e-3: seconds to minutes on one core."""
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
SMALL: dict[str, Recipe] = {
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


def reproduce(
    names: Iterable[str], out: str | Path, *, seeds: int = 3, small: bool = False, device: str = "cpu"
) -> Iterator[tuple[str, Run]]:
    """Train each named recipe with seeds 0, 1, ...; what is there already is finished or taken as it is.

    Args:
        names: of `RECIPES`; all of them when empty.
        out: folder of the runs, `NAME-SEED`.
        seeds: how many.
        small: the recipes of `SMALL`.
        device: where to train.

    Raises:
        ValueError: for an unknown name, before anything is trained.
    """
    table = SMALL if small else RECIPES
    recipes = {name: look_up("recipe", name, table) for name in (list(names) or table)}
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    return (
        (n, r.record(Path(out) / f"{n}-{s}", seed=s, device=device)) for n, r in recipes.items() for s in range(seeds)
    )


def summary(run: Run) -> dict[str, Any]:
    """A run in numbers; None for what it did not reach.

    The plateau, from its start until the loss leaves it, is that of `find_plateau`; its losses are medians.
    """
    m = run.metrics
    plateau, half = find_plateau(run), first_crossing(m.accuracy, 0.5)
    on = m.loc[plateau.start : plateau.end] if plateau.start is not None else m.iloc[:0]
    peak = m.collapse.idxmax() if m.collapse.notna().any() else None
    values: dict[str, Any] = {"seed": run.config["model"]["seed"]}
    if peak is not None:
        values["collapse < 0.9"] = first_crossing(m.collapse.loc[peak:], 0.9, above=False)
    values |= {
        "plateau from": plateau.start,
        "loss leaves": plateau.end,
        "acc > 0.5": half,
        "acc > 0.95": first_crossing(m.accuracy, 0.95),
        "plateau loss": on.loss.median(),
        "plateau answer loss": on.answer_loss.median(),
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
