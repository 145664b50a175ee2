"""`record`: a training loop that measures and saves; `resume`: continues an interrupted recording.

    run = record(train(model, task, cfg), "runs/mws", eval_batch, every=5, save_every=50)
    run = resume("runs/mws")

A run that is interrupted at any moment, even by SIGKILL, resumes bit for bit.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from plateaulens._signals import defer_sigint
from plateaulens.batch import Batch
from plateaulens.hooks import active_interventions, device_of
from plateaulens.interventions import from_json, intervene
from plateaulens.metrics.measuring import default_metrics, measure, resolve
from plateaulens.protocols import HookedModel, Metric
from plateaulens.runs.run import Run
from plateaulens.tasks import Task
from plateaulens.training.loop import Step, Training, train

Schedule = int | Collection[int]
PROGRESS_METRICS = ("loss", "accuracy", "collapse")  # shown in the progress bar


@dataclass(frozen=True)
class Plan:
    """Steps of a recording, and at which of them to measure and to save.

    Attributes:
        start: First step.
        end: Last step.
        every: Interval of measured steps, or the steps; `start` and `end` are always measured.
        save_every: The same for checkpoints and states.
    """

    start: int
    end: int
    every: Schedule
    save_every: Schedule

    def __post_init__(self) -> None:
        for name in ("every", "save_every"):
            schedule = getattr(self, name)
            if not isinstance(schedule, int):
                object.__setattr__(self, name, frozenset(schedule))
            elif schedule < 1:
                raise ValueError(
                    f"{name}, the schedule, must be an interval of at least 1 or the steps; got {schedule}"
                )

    def measures(self, t: int) -> bool:
        """Whether step t is measured."""
        return self._includes(self.every, t)

    def saves(self, t: int) -> bool:
        """Whether a checkpoint and a state are saved at step t."""
        return self._includes(self.save_every, t)

    def _includes(self, schedule: Schedule, t: int) -> bool:
        return t in (self.start, self.end) or (t % schedule == 0 if isinstance(schedule, int) else t in schedule)

    def to_json(self) -> dict[str, Any]:
        """The fields as values for JSON."""
        return {name: value if isinstance(value, int) else sorted(value) for name, value in vars(self).items()}


def record(
    training: Training,
    path: str | Path,
    eval_batch: Batch,
    metrics: Sequence[Metric | str] | None = None,
    *,
    every: Schedule = 5,
    save_every: Schedule = 50,
    until: int | None = None,
    overwrite: bool = False,
    notes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Run:
    """Continue a training while measuring metrics and saving checkpoints and exact states.

    Interventions that are active on the model are stored with the run, and `resume` applies them again.

    Args:
        training: A training from `train` or `fork`, which continues at its current step.
        path: New folder of the run.
        eval_batch: Evaluation batch, on which the metrics are measured.
        metrics: Metrics, as functions or names; None for `default_metrics(eval_batch, model)`.
        every: Interval of measured steps, or a list of steps; the first and last step are always measured.
        save_every: The same for checkpoints and states.
        until: Last step; None for the last step of the config.
        overwrite: Whether an existing folder is renamed to `path.old-N` instead of raising an error.
        notes: Further entries of run.json.
        progress: Whether to show a progress bar.

    Returns:
        The recorded run.

    Raises:
        ValueError: for a wrong schedule or an unknown metric, before anything is written.
        FileExistsError: if the folder is not empty and `overwrite` is False.
    """
    model = cast(HookedModel, training.model)  # what can be trained need not have hooks; what is measured has
    metrics = default_metrics(eval_batch, model) if metrics is None else metrics
    functions = resolve(model, metrics, eval_batch.task)
    plan = Plan(training.t, training.cfg.steps if until is None else until, every, save_every)
    if not plan.start <= plan.end <= training.cfg.steps:
        raise ValueError(
            f"cannot record until step {plan.end}: the training is at {plan.start} of {training.cfg.steps} steps"
        )
    measure(model, eval_batch[:2], functions)  # a metric that fails does so before anything is written
    interventions = active_interventions(training.model)
    run = Run.create(
        path,
        task=training.task,
        model=training.model,
        train=training.cfg,
        eval_batch=eval_batch,
        state=training.state_dict(),  # initial weights may not follow from the config
        notes={
            **(notes or {}),
            "record": {**plan.to_json(), "metrics": [f.__name__ for f in functions]},
            "interventions": [{"from": plan.start, "to": plan.end, "what": i.to_json()} for i in interventions],
        },
        overwrite=overwrite,
    )
    return _continue(run, training, eval_batch, functions, plan, progress=progress)


def resume(
    path: str | Path,
    *,
    training: Training | None = None,
    metrics: Sequence[Metric | str] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Run:
    """Continue an interrupted recording from its newest exact state; a finished run is returned unchanged.

    Args:
        path: Folder of the run.
        training: For models or tasks of your own, a new training like the recorded one.
        metrics: For metrics of your own, the list that was recorded.
        device: Device to train on; None for the device of the recording, on which alone the bytes are the same.
        progress: Whether to show a progress bar.

    Returns:
        The finished run.

    Raises:
        FileNotFoundError: if `path` is not the folder of a run.
        ValueError: if the run was not made by `record`, or its state was removed.
    """
    run = Run(path)
    if "record" not in run.config:
        raise ValueError(f"{run.path} has no recording to resume (its run.json has no 'record')")
    recorded = run.config["record"]
    plan = Plan(recorded["start"], recorded["end"], recorded["every"], recorded["save_every"])
    if run.finished:
        return run
    if training is None:
        if run.task is None:
            raise ValueError(f"{run.path} trained a task of your own; pass training=train(model, task, cfg)")
        training = train(run.new_model(device or run.config["device"]), run.task, run.train_config)
    model = cast(HookedModel, training.model)
    try:
        functions = resolve(model, metrics or recorded["metrics"], training.task)
    except ValueError as error:
        raise ValueError(f"{error}; pass metrics of your own again: resume(path, metrics=[...])") from error
    state = run.rewind()
    if state is None:
        raise ValueError(f"{run.path} has no exact state (state/ is empty); record it again")
    training.load_state_dict(state)
    interventions = [from_json(entry["what"], run.tensors(), training.task) for entry in run.config["interventions"]]
    eval_batch = replace(run.eval_batch(), task=training.task if isinstance(training.task, Task) else None)
    remaining = training.t < plan.end
    with intervene(model, *interventions) if interventions and remaining else nullcontext():
        return _continue(run, training, eval_batch, functions, plan, progress=progress)


def _continue(
    run: Run, training: Training, eval_batch: Batch, functions: Sequence[Metric], plan: Plan, *, progress: bool
) -> Run:
    """Train to the end of the plan, measuring and saving; what the run already has is skipped."""
    from tqdm.auto import tqdm

    eval_batch = eval_batch.to(device_of(training.model))
    bar = tqdm(total=plan.end, initial=training.t, unit="step", disable=not progress, leave=True)

    def visit(step: Step) -> None:
        with defer_sigint():
            if step.t > run.last and plan.measures(step.t):
                values = measure(cast(HookedModel, training.model), eval_batch, functions)
                run.log(step.t, values if step.loss is None else {**values, "train_loss": step.loss})
                bar.set_postfix(
                    {k: f"{v.item():.3f}" for k, v in values.items() if v.ndim == 0 and k in PROGRESS_METRICS}
                )
            if plan.saves(step.t):
                if step.t not in run.steps:
                    run.save(step.t, training.model)
                run.save_state(step.t, training.state_dict())
            bar.n = step.t
            bar.update(0)

    try:
        visit(training.current)
        for step in training.until(plan.end):
            visit(step)
    except KeyboardInterrupt:
        with defer_sigint():
            if training.t < plan.end:  # a state of the last step means that everything was measured and saved
                run.save_state(training.t, training.state_dict())
        raise
    finally:
        bar.close()
    return run
