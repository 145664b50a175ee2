"""`Recipe`: a training with everything that a paper says about it, and how it is recorded.

recipe = SMALL["scale-10"]
run = recipe.record("runs/scale-10-0", seed=0)       # call it again to go on
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plateaulens.interventions import Freeze, Intervention, ScaleAttention, intervene
from plateaulens.models.config import ModelConfig
from plateaulens.models.parameter_groups import graft
from plateaulens.models.transformer import Transformer
from plateaulens.runs.recording import record, resume
from plateaulens.runs.run import Run
from plateaulens.tasks import Task
from plateaulens.training.config import TrainConfig
from plateaulens.training.loop import Training, train


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A task with the model, the training and the change that a paper gives it.

    Attributes:
        task: what is learned.
        model: fields of the `ModelConfig` beside those that the task fixes.
        train: how.
        scale: factor on attention on the task's optimal map (`ScaleAttention`), or None.
        from_step: from which step on attention is scaled; before it the training is the unchanged one.
        frozen: parts of the model that do not learn (`Freeze`).
        optimal: the frozen parts are a trained donor's, not the random initial ones.
        figure: the paper's figure.

    Raises:
        ValueError: for `from_step` without `scale` or beyond the training, `optimal` without `frozen`.
    """

    task: Task
    train: TrainConfig
    model: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    from_step: int = 0
    frozen: tuple[str, ...] = ()
    optimal: bool = False
    figure: str = ""

    def __post_init__(self) -> None:
        if self.from_step and self.scale is None:
            raise ValueError(f"from_step={self.from_step} says when attention is scaled; give scale, too")
        if not 0 <= self.from_step < self.train.steps:
            raise ValueError(f"from_step must lie in 0..steps-1={self.train.steps - 1}, got {self.from_step}")
        if self.optimal and not self.frozen:
            raise ValueError("optimal parts are taken from a trained donor and frozen; say which: frozen")

    @property
    def changes(self) -> tuple[Intervention, ...]:
        """The interventions of the training."""
        scaled = () if self.scale is None else (ScaleAttention(self.task, factor=self.scale),)
        return (*scaled, *([Freeze(self.frozen)] if self.frozen else []))

    def model_config(self, seed: int = 0) -> ModelConfig:
        """The model's sizes and choices."""
        return ModelConfig.for_task(self.task, seed=seed, **self.model)

    def begin(self, seed: int = 0, *, donor: Run | None = None, device: str = "cpu") -> Training:
        """The training at step 0; `seed` is that of the weights and of the data.

        Raises:
            ValueError: when the frozen parts need a donor and there is none, one without checkpoints or with other
                shapes.
        """
        model = Transformer(self.model_config(seed), device)
        if self.optimal:
            if donor is None:
                raise ValueError(f"the parts {self.frozen} are a trained model's: pass donor=Run(...)")
            if not donor.steps:
                raise ValueError(f"{donor.path} has no checkpoints to take the parts {self.frozen} from")
            model = graft(model, donor.model(donor.steps[-1], device), self.frozen)
        return train(model, self.task, replace(self.train, seed=seed))

    def record(
        self,
        path: str | Path,
        *,
        seed: int = 0,
        donor: Run | None = None,
        device: str = "cpu",
        progress: bool = True,
        **options: Any,
    ) -> Run:
        """Train and measure about a hundred times, or finish what an earlier call left.

        A finished run is returned. The steps before `from_step` are a run of their own, `PATH-past`.

        Args:
            path: the run's folder.
            seed: of the weights and of the data.
            donor: the finished run whose last weights the frozen parts take, if they are to be optimal.
            device: where to train.
            progress: show a progress bar.
            options: as of `plateaulens.record`: `eval_batch` (256 prompts), `every`, `save_every`, `overwrite`, ...

        Raises:
            ValueError: when the folder, or that of the past, holds another training.
        """
        path = Path(path)
        if (path / "run.json").is_file() and not options.get("overwrite"):
            self._refuse_another(Run(path), seed)
            return resume(path, device=device, progress=progress)
        training = self.begin(seed, donor=donor, device=device)
        steps = self.train.steps
        options = {"every": max(5, steps // 100), "save_every": max(5, steps // 10), **options, "progress": progress}
        options.setdefault("eval_batch", self.task.sample(256, seed=1, device=device))
        if self.from_step:
            before = replace(self, scale=None, from_step=0)
            past = before.record(
                path.with_name(f"{path.name}-past"), seed=seed, device=device, **{**options, "until": self.from_step}
            )
            if (end := past.config["record"]["end"]) != self.from_step:  # left by a recipe with another start
                raise ValueError(f"{past.path} ends at step {end}, not {self.from_step}; remove it")
            training.load_state_dict(past.rewind() or {})
        if self.optimal and donor is not None:
            taken = {"parts": list(self.frozen), "run": str(donor.path), "step": donor.steps[-1]}
            options["notes"] = {"graft": taken, **options.get("notes", {})}
        with intervene(training.model, *self.changes) if self.changes else nullcontext():
            return record(training, path, **options)

    def _refuse_another(self, kept: Run, seed: int) -> None:
        changes = [entry["what"] for entry in kept.config["interventions"]]
        same = {
            "task": kept.task == self.task,
            "train": kept.train_config == replace(self.train, seed=seed),
            "model": kept.model_config == self.model_config(seed),
            "interventions": changes == json.loads(json.dumps([change.to_json() for change in self.changes])),
            "graft": ("graft" in kept.config) == self.optimal,
            "first step": kept.config.get("record", {}).get("start") == self.from_step,
        }
        if wrong := [key for key, is_same in same.items() if not is_same]:
            raise ValueError(f"{kept.path} holds a run with another {' and '.join(wrong)}; choose another folder")
