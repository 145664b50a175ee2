"""`Recipe`: the task, model, training and changes of one training of a paper, and how it is recorded.

    from plateaulens.papers.abrupt_learning.recipes import SMALL_RECIPES

    run = SMALL_RECIPES["scale-10"].record("runs/scale-10-0", seed=0)       # the same call resumes an interrupted run

Every `plateaulens.papers.PAPER.recipes` has two dicts of name -> `Recipe` with the same names: `RECIPES` at the size of
the paper, and `SMALL_RECIPES` at a size that a laptop trains in seconds to minutes. The name of a recipe that changes
nothing is that of its task on the command line (`plateaulens train NAME`, with `--small` the small one).
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from plateaulens.batch import Batch
from plateaulens.interventions import Freeze, Intervention, ScaleAttention, intervene
from plateaulens.models.config import ModelConfig
from plateaulens.models.parameter_groups import graft
from plateaulens.models.transformer import Transformer
from plateaulens.protocols import HookedModel, Metric
from plateaulens.runs.recording import Schedule, record, resume
from plateaulens.runs.run import Run
from plateaulens.tasks import Task
from plateaulens.training.config import TrainConfig
from plateaulens.training.loop import Training, train


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A task with the model, the training configuration and the changes of one training of a paper.

    Attributes:
        task: The task.
        train: The training configuration.
        model: Fields of `ModelConfig` other than those that the task determines.
        scale: Factor on attention on the task's optimal map (`ScaleAttention`), or None for no change.
        from_step: First step at which attention is scaled; the steps before are trained unchanged.
        frozen: Parameter groups that are not trained (`Freeze`).
        optimal: Whether the frozen groups have a trained model's weights instead of their initial ones.
        figure: Number of the paper's figure.

    Raises:
        ValueError: If `from_step` is given without `scale` or is not a step of the training, or `optimal` without
            `frozen`.
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
            raise ValueError(f"from_step={self.from_step} is the first step with scaled attention; give scale, too")
        if not 0 <= self.from_step < self.train.steps:
            raise ValueError(f"from_step must be in 0..steps-1={self.train.steps - 1}, got {self.from_step}")
        if self.optimal and not self.frozen:
            raise ValueError("optimal=True freezes parts at a trained model's weights; name these parts: frozen")

    @property
    def changes(self) -> tuple[Intervention, ...]:
        """The interventions that are active during the training."""
        scaled = () if self.scale is None else (ScaleAttention(self.task, factor=self.scale),)
        return (*scaled, *([Freeze(self.frozen)] if self.frozen else []))

    def model_config(self, seed: int = 0) -> ModelConfig:
        """The `ModelConfig` with `seed` for the initial weights."""
        return ModelConfig.for_task(self.task, seed=seed, **self.model)

    def begin(self, seed: int = 0, *, donor: Run | None = None, device: str = "cpu") -> Training:
        """The training at step 0, without the interventions.

        Args:
            seed: Seed of the initial weights and of the data.
            donor: Run whose last checkpoint has the weights of the frozen parts; needed if `optimal`.
            device: Device to train on.

        Raises:
            ValueError: If a donor is needed and missing, has no checkpoints, or has weights of other shapes.
        """
        model = Transformer(self.model_config(seed), device)
        if self.optimal:
            if donor is None:
                raise ValueError(f"the frozen parts {self.frozen} need a trained model's weights: pass donor=Run(...)")
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
        eval_batch: Batch | None = None,
        metrics: Sequence[Metric | str] | None = None,
        every: Schedule | None = None,
        save_every: Schedule | None = None,
        until: int | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Run:
        """Train and record a run, or resume the one in `path`; a finished run is returned as it is.

        The steps before `from_step` are recorded as a run of their own in `PATH-past`.

        Args:
            path: Folder of the run.
            seed: Seed of the initial weights and of the data.
            donor: Finished run whose last checkpoint has the weights of the frozen parts; needed if `optimal`.
            device: Device to train on.
            eval_batch: Batch on which metrics are computed; 256 examples of seed 1 by default.
            metrics: As in `plateaulens.record`.
            every: Steps between measurements, or a list of steps; a hundredth of the training, at least 5, by default.
            save_every: Steps between checkpoints, or a list of steps; a tenth of the training, at least 5, by default.
            until: Step to stop after; the last one by default.
            overwrite: Whether to rename a folder in the way and start anew.
            progress: Whether to show a progress bar.

        Raises:
            ValueError: If the folder, or `PATH-past`, has a run of another training.
        """
        path, steps = Path(path), self.train.steps
        if (path / "run.json").is_file() and not overwrite:
            self._check_same_training(Run(path), seed)
            return resume(path, device=device, progress=progress)
        training = self.begin(seed, donor=donor, device=device)
        eval_batch = self.task.sample(256, seed=1, device=device) if eval_batch is None else eval_batch
        options: dict[str, Any] = {
            "eval_batch": eval_batch,
            "metrics": metrics,
            "every": max(5, steps // 100) if every is None else every,
            "save_every": max(5, steps // 10) if save_every is None else save_every,
            "overwrite": overwrite,
            "progress": progress,
        }
        if self.from_step:
            unchanged, past_path = replace(self, scale=None, from_step=0), path.with_name(f"{path.name}-past")
            past = unchanged.record(past_path, seed=seed, device=device, until=self.from_step, **options)
            if (end := past.config["record"]["end"]) != self.from_step:  # the run of a recipe with another from_step
                raise ValueError(f"{past.path} ends at step {end}, not {self.from_step}; remove it")
            training.load_state_dict(past.rewind() or {})
        notes: dict[str, Any] | None = None
        if self.optimal and donor is not None:
            notes = {"graft": {"parts": list(self.frozen), "run": str(donor.path), "step": donor.steps[-1]}}
        with intervene(cast(HookedModel, training.model), *self.changes) if self.changes else nullcontext():
            return record(training, path, until=until, notes=notes, **options)

    def _check_same_training(self, run: Run, seed: int) -> None:
        changes = [entry["what"] for entry in run.config["interventions"]]
        same = {
            "task": run.task == self.task,
            "train": run.train_config == replace(self.train, seed=seed),
            "model": run.model_config == self.model_config(seed),
            "interventions": changes == json.loads(json.dumps([change.to_json() for change in self.changes])),
            "graft": ("graft" in run.config) == self.optimal,
            "first step": run.config.get("record", {}).get("start") == self.from_step,
        }
        if wrong := [key for key, is_same in same.items() if not is_same]:
            raise ValueError(f"{run.path} has a run with another {' and '.join(wrong)}; choose another folder")
