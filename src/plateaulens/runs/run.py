"""`Run`: a folder that explains itself, and the only code that reads or writes it.

    run.json        configs, versions, git hash, device, threads, times, interventions
    metrics.jsonl   a line per measured step, appended and flushed
    eval_batch.safetensors            the evaluation batch that was measured
    checkpoints/000100.safetensors   weights at step 100
    state/000100.safetensors         the newest exact state, for `resume`
    tensors/DIGEST.safetensors       big tensors of interventions
    report.html     written by `plateaulens report`
    probes/, ablations/, matrix/     what the commands of these names found, with a page each

Every file but metrics.jsonl is written under a temporary name and renamed.
"""

import json
import math
import os
import re
import subprocess
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from operator import index
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from plateaulens._io import (
    move_aside,
    read_tensors,
    to_json_value,
    versions,
    write_atomically,
    write_json,
    write_tensors,
)
from plateaulens._registry import build
from plateaulens._signals import defer_sigint
from plateaulens.batch import TENSOR_FIELDS, Batch, Decoding
from plateaulens.models.config import ModelConfig
from plateaulens.models.transformer import Transformer
from plateaulens.tasks import TASKS, Task, task_from_json, task_to_json
from plateaulens.training.config import TrainConfig

LEFT = re.compile(r"(eval_batch|tensors/[0-9a-f]{64}|state/\d{6,})\.safetensors|((tensors|state)/)?\.[^/]+\.partial")
PACKAGES = ("plateaulens", "torch", "transformer-lens", "numpy")


class Run:
    """An ordered list of steps, what was measured at each, and a model at some.

    `Run(path)` opens, `Run.create(...)` starts one.

    Raises:
        FileNotFoundError: when `path` is no run folder.
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
                self._last, self._trimmed = self._last_step(), False
            case _:
                raise ValueError(f"{self.path / 'run.json'} is not what a Run writes (no task, model and train)")

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        task: Any,
        model: nn.Module,
        train: TrainConfig,
        eval_batch: Batch | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        state: dict[str, Tensor] | None = None,
        notes: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> "Run":
        """Start a run in a new or empty folder.

        Args:
            path: the folder.
            task: what is learned.
            model: what learns; its config is kept.
            train: how it learns.
            eval_batch: the evaluation batch, stored with the run.
            tensors: tensors that the notes refer to by digest.
            state: the exact state of a training that begins here, from its `state_dict`.
            notes: more entries for run.json.
            overwrite: rename a folder that is in the way (to `path.old-N`) instead of refusing.

        Raises:
            FileExistsError: when the folder is not empty and `overwrite` is false.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or not _is_fresh(path)):
            if not overwrite:
                raise FileExistsError(
                    f"{path} is not empty; choose another folder, `plateaulens resume {path}`, "
                    "or overwrite=True (--overwrite in a shell)"
                )
            move_aside(path)
        for left in _files(path):  # of a training whose create was killed
            left.unlink()
        cfg = getattr(model, "cfg", None)
        config: dict[str, Any] = {
            "format": 1,
            "task": task_to_json(task) if isinstance(task, Task) else {"task": type(task).__name__},
            "model": asdict(cfg) if isinstance(cfg, ModelConfig) else {"class": type(model).__name__},
            "train": asdict(train),
            "versions": versions(*PACKAGES),
            "git": _git_hash(),
            "device": str(next(model.parameters()).device),
            "threads": torch.get_num_threads(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "interventions": [],
            **({"decoding": asdict(eval_batch.decoding)} if eval_batch is not None and eval_batch.n_new else {}),
            **(notes or {}),
        }
        path.mkdir(parents=True, exist_ok=True)
        if eval_batch is not None:
            columns = {name: getattr(eval_batch, name) for name in TENSOR_FIELDS}
            write_tensors(path / "eval_batch.safetensors", {**columns, "n_new": torch.tensor(eval_batch.n_new)})
        for digest, tensor in (tensors or {}).items():
            write_tensors(path / "tensors" / f"{digest}.safetensors", {"tensor": tensor})
        if state is not None:
            write_tensors(path / "state" / f"{int(state['t']):06d}.safetensors", state)
        write_json(path / "run.json", config)  # last: a folder with a run.json lacks nothing
        return cls(path)

    # What was measured.

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; tensors and arrays become numbers or lists, NaN and infinities null.

        Raises:
            ValueError: when `step` is not above the last one logged.
        """
        step = index(step)  # of NumPy, too
        if step <= self._last:
            raise ValueError(f"step {step} is not above the last logged step {self._last} of {self.path}")
        line = json.dumps({"step": step, **{name: to_json_value(v) for name, v in values.items()}}, allow_nan=False)
        if not self._trimmed:  # a half line that a crash left must not run into this one
            self._trim(self._last)
        with defer_sigint():  # a line on disk that is not remembered would be written twice
            with (self.path / "metrics.jsonl").open("a") as f:
                f.write(line + "\n")
                f.flush()
            self._last = step

    @property
    def last(self) -> int:
        """The last logged step, -1 before the first."""
        return self._last

    @property
    def metrics(self) -> pd.DataFrame:
        """What was logged, a row per step; null is NaN. A line cut short by a crash is left out, with a warning."""
        rows = self._rows()
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame(index=pd.Index([], name="step"))

    def _rows(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            warnings.warn(f"{path}: the last line was cut short and is left out; resume repairs it", stacklevel=3)
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append({name: _nan(value) for name, value in _row(line).items()})
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}, is no measured step ({error}); repair or remove it"
                ) from error
        return rows

    def _trim(self, last: int) -> None:
        """Drop the lines after step `last`, and one that was cut short."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= last]
        if kept != lines:  # a run that is whole is only read
            write_atomically(path, lambda p: p.write_text("".join(kept)))
        self._last, self._trimmed = self._last_step(), True

    def _last_step(self) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = self._rows()
        return int(rows[-1]["step"]) if rows else -1

    # Models at steps.

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return _numbered(self.path / "checkpoints")

    def save(self, step: int, model: nn.Module) -> None:
        """Keep the weights of `model` as the checkpoint of `step`."""
        write_tensors(self._checkpoint(step), dict(model.state_dict()))

    def weights(self, step: int) -> dict[str, Tensor]:
        """The tensors of a checkpoint.

        Raises:
            ValueError: for a step without a checkpoint (with the nearest one), or a corrupt file.
        """
        if step not in self.steps:
            near = min(self.steps, key=lambda s: abs(s - step), default=None)
            raise ValueError(f"{self.path} has no checkpoint of step {step}; nearest: {near}, all: {self.steps}")
        return _read(self._checkpoint(step))

    def model(self, step: int, device: torch.device | str | None = None) -> Transformer:
        """The model as it was at `step`.

        Raises:
            ValueError: as `weights`, and for runs of models that are not `Transformer`s.
        """
        model = self.new_model(device)
        model.load_state_dict(self.weights(step))
        return model

    def new_model(self, device: torch.device | str | None = None) -> Transformer:
        """The untrained model of this run."""
        if self.model_config is None:
            raise ValueError(
                f"this run trained a {self.config['model']['class']}; load run.weights(step) into your own"
            )
        return Transformer(self.model_config, device)

    @property
    def model_config(self) -> ModelConfig | None:
        """The model's sizes and choices, or None when it is not a `Transformer`."""
        own = "class" not in self.config["model"]
        return build(ModelConfig, self.config["model"], "model config") if own else None

    @property
    def task(self) -> Task | None:
        """The task, or None when it is not one of PlateauLens's."""
        known = self.config["task"]["task"] in TASKS
        return task_from_json(self.config["task"]) if known else None

    @property
    def train_config(self) -> TrainConfig:
        """How the model was trained."""
        return build(TrainConfig, self.config["train"], "train config")

    @property
    def has_eval_batch(self) -> bool:
        """Whether a evaluation batch was kept with the run."""
        return (self.path / "eval_batch.safetensors").is_file()

    def eval_batch(self) -> Batch:
        """The evaluation batch that was measured.

        Raises:
            ValueError: when none was kept.
        """
        if not self.has_eval_batch:
            raise ValueError(
                f"{self.path} keeps no evaluation batch; pass eval_batch= to Run.create, or sample one: run.task"
            )
        eval_batch = _read(self.path / "eval_batch.safetensors")
        decoding = build(Decoding, self.config.get("decoding", {}), "decoding")
        kind = Batch if self.task is None else self.task.batch_type
        columns = {name: eval_batch[name] for name in TENSOR_FIELDS}
        return kind(**columns, task=self.task, n_new=int(eval_batch.get("n_new", 0)), decoding=decoding)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of interventions, by digest."""
        return {p.stem: _read(p)["tensor"] for p in (self.path / "tensors").glob("*.safetensors")}

    # Exact state.

    @property
    def finished(self) -> bool:
        """Whether `record` came to its end: the exact state of its last step is there."""
        return _numbered(self.path / "state")[-1:] == [self.config.get("record", {}).get("end")]

    def save_state(self, step: int, state: dict[str, Tensor]) -> None:
        """Keep an exact state, then drop older ones; everything logged until now is on disk first."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            with metrics.open("rb") as f:
                os.fsync(f.fileno())
        write_tensors(self.path / "state" / f"{step:06d}.safetensors", state)
        for old in _numbered(self.path / "state"):
            if old < step:
                (self.path / "state" / f"{old:06d}.safetensors").unlink()

    def rewind(self) -> dict[str, Tensor] | None:
        """Load the newest exact state and drop whatever was written after it; None when there is no state."""
        steps = _numbered(self.path / "state")
        state = _read(self.path / "state" / f"{steps[-1]:06d}.safetensors") if steps else None
        last = steps[-1] if steps else -1
        for partial in self.path.rglob(".*.partial"):
            partial.unlink()
        for step in self.steps:
            if step > last:
                self._checkpoint(step).unlink()
        self._trim(last)
        return state

    def _checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"{step:06d}.safetensors"

    def __repr__(self) -> str:
        steps = self.steps
        span = f"checkpoints {steps[0]}..{steps[-1]} ({len(steps)})" if steps else "no checkpoints"
        return f"Run({str(self.path)!r}, task={self.config['task']['task']}, measured to step {self.last}, {span})"


def _read(path: Path) -> dict[str, Tensor]:
    with defer_sigint():  # torch makes a ValueError of a Ctrl-C that comes amid its reading
        return read_tensors(path)


def _is_fresh(folder: Path) -> bool:
    """Whether there is nothing but what `create` leaves when it is killed before it writes run.json."""
    return all(LEFT.fullmatch(p.relative_to(folder).as_posix()) for p in _files(folder))


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if not p.is_dir()]


def _row(line: str) -> dict[str, Any]:
    """What a metrics line says; ValueError when it is not that of a measured step."""
    match json.loads(line):
        case {"step": int()} as row:
            return row
    raise ValueError("no step")


def _step_of(line: str) -> float:
    """The step of a metrics line; infinite when the line was cut short."""
    try:
        return float(_row(line)["step"]) if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def _numbered(folder: Path) -> list[int]:
    return sorted(int(p.stem) for p in folder.glob("*.safetensors") if p.stem.isdigit())


def _nan(value: Any) -> Any:
    """The inverse of what `plain` does to NaN."""
    if isinstance(value, list):
        return [_nan(v) for v in value]
    return math.nan if value is None else value


def _git_hash() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
