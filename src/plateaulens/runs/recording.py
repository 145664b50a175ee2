"""`record`: the training loop with measuring and saving, and `resume`: the rest of one that was cut off.

    run = record(train(model, task, cfg), "runs/mws", eval_batch, every=5, save_every=50)

A run that was interrupted at any moment, even by SIGKILL, is resumed to the bytes of one that was not.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plateaulens._signals import defer_sigint
from plateaulens.batch import Batch
from plateaulens.hooks import active_interventions, device_of
from plateaulens.interventions import from_json, intervene
from plateaulens.metrics.measuring import default_metrics, measure, resolve
from plateaulens.protocols import Metric
from plateaulens.runs.run import Run
from plateaulens.tasks import Task
from plateaulens.training.loop import Step, Training, train

Schedule = int | Collection[int]


@dataclass(frozen=True)
class Plan:
    """When to measure and when to save; the first and the last step always are."""

    start: int
    end: int
    every: Schedule
    save_every: Schedule

    def due(self, schedule: Schedule, t: int) -> bool:
        """Whether step t is on `schedule` (every so many steps, or a list of steps)."""
        return t in (self.start, self.end) or (t % schedule == 0 if isinstance(schedule, int) else t in schedule)


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
    """Train on, measure on `eval_batch`, save checkpoints and exact states; returns the `Run`.

    Interventions that are active on the model are written into the run, and `resume` applies them again.

    Args:
        training: from `train` or `fork`; it continues where it is.
        path: a new folder.
        eval_batch: the evaluation batch.
        metrics: measurements, as functions or names; None is `standard(eval_batch, model)`.
        every: measure every so many steps, or at a list of steps.
        save_every: the same for checkpoints and states.
        until: stop after this step instead of at the end of the config.
        overwrite: rename a folder that is in the way instead of refusing.
        notes: more entries for run.json.
        progress: show a progress bar.

    Raises:
        ValueError: for a bad schedule or an unknown measurement, before anything is written.
        FileExistsError: when the folder is not empty.
    """
    metrics = default_metrics(eval_batch, training.model) if metrics is None else metrics
    functions = resolve(training.model, metrics, eval_batch.task)
    plan = Plan(training.t, training.cfg.steps if until is None else until, _schedule(every), _schedule(save_every))
    if not plan.start <= plan.end <= training.cfg.steps:
        raise ValueError(
            f"cannot record until step {plan.end}: the training is at {plan.start} of {training.cfg.steps} steps"
        )
    measure(
        training.model, eval_batch[:2], functions
    )  # what cannot be measured is found out before anything is written
    on = active_interventions(training.model)
    run = Run.create(
        path,
        task=training.task,
        model=training.model,
        train=training.cfg,
        eval_batch=eval_batch,
        tensors={digest: tensor for i in on for digest, tensor in i.tensors().items()},
        state=training.state_dict(),  # weights that no config describes are there from the first moment on
        notes={
            **(notes or {}),
            "record": {
                "start": plan.start,
                "end": plan.end,
                "every": _json(plan.every),
                "save_every": _json(plan.save_every),
                "metrics": [f.__name__ for f in functions],
            },
            "interventions": [{"from": plan.start, "to": plan.end, "what": i.to_json()} for i in on],
        },
        overwrite=overwrite,
    )
    return _drive(run, training, eval_batch, functions, plan, progress)


def resume(
    path: str | Path,
    *,
    training: Training | None = None,
    metrics: Sequence[Metric | str] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Run:
    """Finish a run from its newest exact state; a finished one is returned as it is.

    Args:
        path: the run folder.
        training: for models or tasks of your own: a fresh training like the one that was recorded.
        metrics: for measurements of your own: the list that was recorded.
        device: where to go on, by default where it began; the bytes are the same only there.
        progress: show a progress bar.

    Raises:
        ValueError: when the run was not made by `record`, or its state was removed.
    """
    run = Run(path)
    if "record" not in run.config:
        raise ValueError(f"{run.path} holds no recording to resume (its run.json has no 'record')")
    kept = run.config["record"]
    plan = Plan(kept["start"], kept["end"], kept["every"], kept["save_every"])
    if run.finished:
        return run
    if training is None:
        if run.task is None:
            raise ValueError(f"{run.path} trained a task of your own; pass training=train(model, task, cfg)")
        training = train(run.new_model(device or run.config["device"]), run.task, run.train_config)
    try:
        functions = resolve(training.model, metrics or kept["metrics"], training.task)
    except ValueError as error:
        raise ValueError(f"{error}; measurements of your own are passed again: resume(path, metrics=[...])") from error
    state = run.rewind()
    if state is None:
        raise ValueError(f"{run.path} has lost its exact state (state/ is empty); record it again")
    training.load_state_dict(state)
    changes = [from_json(entry["what"], run.tensors(), training.task) for entry in run.config["interventions"]]
    eval_batch = replace(run.eval_batch(), task=training.task if isinstance(training.task, Task) else None)
    with intervene(training.model, *changes) if changes and training.t < plan.end else nullcontext():
        return _drive(run, training, eval_batch, functions, plan, progress)


def _drive(run: Run, training: Training, eval_batch: Batch, functions: list[Metric], plan: Plan, progress: bool) -> Run:
    from tqdm.auto import tqdm

    eval_batch = eval_batch.to(device_of(training.model))
    bar = tqdm(total=plan.end, initial=training.t, unit="step", disable=not progress, leave=True)

    def visit(step: Step) -> None:
        with defer_sigint():
            if step.t > run.last and plan.due(plan.every, step.t):
                values = measure(training.model, eval_batch, functions)
                run.log(step.t, values if step.loss is None else {**values, "train_loss": step.loss})
                bar.set_postfix({k: f"{v.item():.3f}" for k, v in values.items() if v.ndim == 0 and k in SHOWN})
            if plan.due(plan.save_every, step.t):
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
            if training.t < plan.end:  # the state of the last step says that everything was measured and saved
                run.save_state(training.t, training.state_dict())
        raise
    finally:
        bar.close()
    return run


SHOWN = ("loss", "accuracy", "collapse")


def _schedule(steps: Schedule) -> Schedule:
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"a schedule is every 1 or more steps, or a list of steps; got {steps}")
        return steps
    return frozenset(steps)


def _json(steps: Schedule) -> Any:
    return steps if isinstance(steps, int) else sorted(steps)
