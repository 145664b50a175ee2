"""`Run`: the folder of a training, and the only code that reads or writes it.

    run = pl.Run("runs/mws")
    run.metrics["loss"].plot()
    model = run.model(step=100)

Files of the folder, all but metrics.jsonl written to a temporary name and renamed:

    run.json                         configs, versions, git hash, device, threads, time, interventions
    metrics.jsonl                    one line per measured step, appended and flushed
    eval_batch.safetensors           the evaluation batch of the metrics
    checkpoints/000100.safetensors   the weights at step 100
    state/000100.safetensors         the newest exact state of the training, for `resume`
    tensors/DIGEST.safetensors       tensors of interventions
    report.html                      written by `plateaulens report`
    probes/ ablations/ matrix/       results and pages of the commands of these names
"""

import json
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from plateaulens._io import move_aside, read_tensors, versions, write_json, write_tensors
from plateaulens._registry import build
from plateaulens._signals import defer_sigint
from plateaulens.batch import TENSOR_FIELDS, Batch, Decoding
from plateaulens.hooks import active_interventions, device_of
from plateaulens.models.config import ModelConfig
from plateaulens.models.transformer import Transformer
from plateaulens.runs.metrics_log import MetricsLog
from plateaulens.tasks import TASKS, Task, task_from_json, task_to_json
from plateaulens.training.config import TrainConfig

# Files that `create` leaves if it is killed before it writes run.json.
LEFTOVERS = re.compile(
    r"(eval_batch|tensors/[0-9a-f]{64}|state/\d{6,})\.safetensors|((tensors|state)/)?\.[^/]+\.partial"
)
PACKAGES = ("plateaulens", "torch", "transformer-lens", "numpy")


class Run:
    """A recorded training: metrics at measured steps, and models at the steps with a checkpoint.

    `Run(path)` opens a run, `Run.create(path, ...)` starts one.

    Args:
        path: Folder of the run.

    Raises:
        FileNotFoundError: if `path` is not the folder of a run.
        ValueError: if run.json or metrics.jsonl is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise FileNotFoundError(f"{self.path} is not a run (no run.json); start one with `plateaulens train`")
        try:
            self.config: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path / 'run.json'} is corrupt ({error})") from error
        match self.config:
            case {"task": {"task": str()}, "model": dict(), "train": dict()}:
                self._log = MetricsLog(self.path / "metrics.jsonl")
            case _:
                raise ValueError(f"{self.path / 'run.json'} is not the config of a run (no task, model and train)")

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        task: Any,
        model: nn.Module,
        train: TrainConfig,
        eval_batch: Batch | None = None,
        state: dict[str, Tensor] | None = None,
        notes: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> "Run":
        """Start a run in a new or empty folder.

        Args:
            path: Folder of the run.
            task: Task that is trained; a `Task`, or an object of your own, of which only the class name is stored.
            model: Model that is trained; its config is stored, and the tensors of interventions active on it.
            train: Config of the training.
            eval_batch: Evaluation batch to store with the run.
            state: Exact state of the training, from `Training.state_dict`.
            notes: Further entries of run.json.
            overwrite: Whether an existing folder is renamed to `path.old-N` instead of raising an error.

        Raises:
            FileExistsError: if the folder is not empty and `overwrite` is False.
        """
        path = Path(path)
        _clear(path, overwrite=overwrite)
        path.mkdir(parents=True, exist_ok=True)
        if eval_batch is not None:
            columns = {name: getattr(eval_batch, name) for name in TENSOR_FIELDS}
            write_tensors(path / "eval_batch.safetensors", {**columns, "n_new": torch.tensor(eval_batch.n_new)})
        for intervention in active_interventions(model):
            for digest, tensor in intervention.tensors().items():
                write_tensors(path / "tensors" / f"{digest}.safetensors", {"tensor": tensor})
        if state is not None:
            write_tensors(path / "state" / f"{int(state['t']):06d}.safetensors", state)
        # run.json is written last, so that a folder which has one is complete.
        write_json(path / "run.json", {**_describe(task, model, train, eval_batch), **(notes or {})})
        return cls(path)

    # Metrics.

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the metrics of a step; tensors and arrays become numbers or lists, NaN and infinities null.

        Raises:
            ValueError: if `step` is not above the last one logged.
        """
        self._log.append(step, values)

    @property
    def last(self) -> int:
        """The last logged step, -1 before the first."""
        return self._log.last

    @property
    def metrics(self) -> pd.DataFrame:
        """The logged metrics, a row per step; null is NaN. A partial last line is skipped with a warning."""
        return self._log.frame()

    # Models.

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return _steps_in(self.path / "checkpoints")

    def model(self, step: int, device: torch.device | str | None = None) -> Transformer:
        """The model at `step`.

        Args:
            step: One of `steps`.
            device: Device of the weights; None for torch's default.

        Raises:
            ValueError: for a step without a checkpoint, a damaged file, or a run of another model than a `Transformer`.
        """
        model = self.new_model(device)
        model.load_state_dict(self.weights(step))
        return model

    def new_model(self, device: torch.device | str | None = None) -> Transformer:
        """The model of the run with its initial weights, before any training."""
        if self.model_config is None:
            raise ValueError(
                f"this run trained a {self.config['model']['class']}; load run.weights(step) into a model of your own"
            )
        return Transformer(self.model_config, device)

    def weights(self, step: int) -> dict[str, Tensor]:
        """The state dict of a checkpoint.

        Raises:
            ValueError: for a step without a checkpoint (the message has the nearest one), or a damaged file.
        """
        if step not in self.steps:
            nearest = min(self.steps, key=lambda s: abs(s - step), default=None)
            raise ValueError(f"{self.path} has no checkpoint of step {step}; nearest: {nearest}, all: {self.steps}")
        return _read(self._checkpoint(step))

    def save(self, step: int, model: nn.Module) -> None:
        """Store the weights of `model` as the checkpoint of `step`."""
        write_tensors(self._checkpoint(step), dict(model.state_dict()))

    # Configs and the evaluation batch.

    @property
    def model_config(self) -> ModelConfig | None:
        """The config of the model, or None if it is not a `Transformer`."""
        is_transformer = "class" not in self.config["model"]
        return build(ModelConfig, self.config["model"], "model config") if is_transformer else None

    @property
    def task(self) -> Task | None:
        """The task, or None if it is not one of `TASKS`."""
        known = self.config["task"]["task"] in TASKS
        return task_from_json(self.config["task"]) if known else None

    @property
    def train_config(self) -> TrainConfig:
        """The config of the training."""
        return build(TrainConfig, self.config["train"], "train config")

    @property
    def has_eval_batch(self) -> bool:
        """Whether an evaluation batch is stored with the run."""
        return (self.path / "eval_batch.safetensors").is_file()

    def eval_batch(self) -> Batch:
        """The evaluation batch of the metrics.

        Raises:
            ValueError: if none is stored.
        """
        if not self.has_eval_batch:
            raise ValueError(
                f"{self.path} has no evaluation batch; pass eval_batch= to Run.create, or sample one from run.task"
            )
        tensors = _read(self.path / "eval_batch.safetensors")
        decoding = build(Decoding, self.config.get("decoding", {}), "decoding")
        batch_type = Batch if self.task is None else self.task.batch_type
        columns = {name: tensors[name] for name in TENSOR_FIELDS}
        return batch_type(**columns, task=self.task, n_new=int(tensors.get("n_new", 0)), decoding=decoding)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of interventions, by digest."""
        return {p.stem: _read(p)["tensor"] for p in (self.path / "tensors").glob("*.safetensors")}

    # Exact state of the training.

    @property
    def finished(self) -> bool:
        """Whether `record` has finished, so that the exact state of its last step is stored."""
        return _steps_in(self.path / "state")[-1:] == [self.config.get("record", {}).get("end")]

    def save_state(self, step: int, state: dict[str, Tensor]) -> None:
        """Store an exact state and remove older ones; all metrics logged before are on disk first."""
        self._log.sync()
        write_tensors(self._state(step), state)
        for old in _steps_in(self.path / "state"):
            if old < step:
                self._state(old).unlink()

    def rewind(self) -> dict[str, Tensor] | None:
        """Load the newest exact state and remove what was written after it; None if no state is stored."""
        steps = _steps_in(self.path / "state")
        state = _read(self._state(steps[-1])) if steps else None
        last = steps[-1] if steps else -1
        for partial in self.path.rglob(".*.partial"):
            partial.unlink()
        for step in self.steps:
            if step > last:
                self._checkpoint(step).unlink()
        self._log.truncate(last)
        return state

    def _checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"{step:06d}.safetensors"

    def _state(self, step: int) -> Path:
        return self.path / "state" / f"{step:06d}.safetensors"

    def __repr__(self) -> str:
        steps = self.steps
        span = f"checkpoints {steps[0]}..{steps[-1]} ({len(steps)})" if steps else "no checkpoints"
        return f"Run({str(self.path)!r}, task={self.config['task']['task']}, measured to step {self.last}, {span})"


def _describe(task: Any, model: nn.Module, train: TrainConfig, eval_batch: Batch | None) -> dict[str, Any]:
    """The entries of run.json."""
    cfg = getattr(model, "cfg", None)
    decoding = {"decoding": asdict(eval_batch.decoding)} if eval_batch is not None and eval_batch.n_new else {}
    return {
        "format": 1,
        "task": task_to_json(task) if isinstance(task, Task) else {"task": type(task).__name__},
        "model": asdict(cfg) if isinstance(cfg, ModelConfig) else {"class": type(model).__name__},
        "train": asdict(train),
        "versions": versions(*PACKAGES),
        "git": _git_hash(),
        "device": str(device_of(model)),
        "threads": torch.get_num_threads(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "interventions": [],
        **decoding,
    }


def _clear(path: Path, *, overwrite: bool) -> None:
    """Make sure that a new run can be written to `path`: remove leftovers, refuse or rename anything else."""
    files = [p for p in path.rglob("*") if not p.is_dir()]
    only_leftovers = all(LEFTOVERS.fullmatch(p.relative_to(path).as_posix()) for p in files)
    if path.exists() and not (path.is_dir() and only_leftovers):
        if not overwrite:
            raise FileExistsError(
                f"{path} is not empty; choose another folder, `plateaulens resume {path}`, "
                "or overwrite=True (--overwrite in a shell)"
            )
        move_aside(path)
    else:
        for leftover in files:
            leftover.unlink()


def _read(path: Path) -> dict[str, Tensor]:
    with defer_sigint():  # torch turns a KeyboardInterrupt while it reads into a ValueError
        return read_tensors(path)


def _steps_in(folder: Path) -> list[int]:
    return sorted(int(p.stem) for p in folder.glob("*.safetensors") if p.stem.isdigit())


def _git_hash() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
