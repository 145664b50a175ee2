"""`train`: an iterator over optimizer updates, to use in a loop of your own.

    for step in train(model, task, TrainConfig(steps=400)):
        if step.t % 5 == 0:
            run.log(step.t, measure(model, eval_batch, metrics))

It does not log, write files or plot. The model is trained in place. The batch of each step is a pure function of (seed,
step), so that a fork or a resumed training gets the same batches.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from plateaulens._signals import defer_sigint
from plateaulens.hooks import active_interventions, device_of
from plateaulens.training.config import TrainConfig
from plateaulens.training.optimizers import build_optimizers, lr_factor, memory_of


@dataclass(frozen=True, eq=False)
class Step:
    """The state of a training after `t` updates.

    Attributes:
        t: Number of completed updates; 0 is the initial model.
        loss: Loss of the update from t-1 to t, at the weights of t-1; None at t = 0.
        batch: Batch of that update; None at t = 0 and right after a resume.
        model: The model that is trained.
    """

    t: int
    loss: Float[Tensor, ""] | None
    batch: Any
    model: nn.Module


def batch_seed(seed: int, t: int) -> int:
    """The seed of the batch of the update to step t, hashed so that runs with other seeds share no batches."""
    return int(np.random.SeedSequence((seed, t)).generate_state(1)[0])


class Training:
    """A training in progress: an iterator of `Step`s that can be stopped, continued, forked and saved.

    A fork or a resumed training gives the same bytes as an uninterrupted one, on the same machine and device, torch
    version and thread count. Ctrl-C takes effect between two updates.

    Args:
        model: Any module with `model(batch.inputs)`; trained in place.
        task: Any object with `sample(n, seed=, device=)` and `loss(outputs, batch)`, such as a `Task`.
        cfg: Optimizer, length and data seed.
    """

    def __init__(self, model: nn.Module, task: Any, cfg: TrainConfig) -> None:
        self.model, self.task, self.cfg = model, task, cfg
        self.optimizers = build_optimizers(model, cfg)
        self.current = Step(0, None, None, model)
        self._delivered = False

    @property
    def t(self) -> int:
        """Number of completed updates."""
        return self.current.t

    def __iter__(self) -> "Training":
        return self

    def __next__(self) -> Step:
        if self._delivered:
            if self.t >= self.cfg.steps:
                raise StopIteration
            with defer_sigint(), torch.enable_grad():
                self.current, self._delivered = self._update(), False
        self._delivered = True  # if an interrupt came before the step was returned, the next call returns it
        return self.current

    def _update(self) -> Step:
        t = self.t + 1
        seed = batch_seed(self.cfg.seed, t)
        batch = self.task.sample(self.cfg.batch_size, seed=seed, device=device_of(self.model))
        self.model.zero_grad()
        loss = self.task.loss(self.model(batch.inputs), batch)
        loss.backward()
        if self.cfg.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
        factor = lr_factor(self.cfg, t)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
            optimizer.step()
        return Step(t, loss.detach(), batch, self.model)

    def until(self, t: int) -> Iterator[Step]:
        """An iterator over the steps up to and including t, after which the training can continue.

        Raises:
            ValueError: if t is above the number of steps of the config.
        """
        if t > self.cfg.steps:
            raise ValueError(f"until={t} is above the {self.cfg.steps} steps of the TrainConfig; raise its steps")
        return self._until(t)  # a generator function would raise only when it is iterated

    def _until(self, t: int) -> Iterator[Step]:
        while self.t < t or not self._delivered and self.t == t:
            yield next(self)

    def fork(self) -> "Training":
        """An independent copy with the same weights, optimizer state, step and future batches, without hooks.

        Raises:
            ValueError: while interventions are active on the model.
        """
        if active := active_interventions(self.model):
            raise ValueError(
                f"cannot fork while {active} is active on the model; leave the `with intervene(...)` first"
            )
        self.model.zero_grad()
        model = deepcopy(self.model)
        if hasattr(model, "reset_hooks"):
            model.reset_hooks()  # type: ignore[operator] # torch's attributes are typed as modules
        copy = Training(model, self.task, self.cfg)
        copy.load_state_dict(self.state_dict())
        copy._delivered = self._delivered
        return copy

    def state_dict(self) -> dict[str, Tensor]:
        """The exact state as a flat dict of copied tensors: weights, optimizer state, loss and step, without hooks."""
        state = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        names: dict[Any, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for parameter, memory in optimizer.state.items():
                for key, value in memory.items():
                    if isinstance(value, Tensor):
                        state[f"optimizer/{names[parameter]}/{key}"] = value
        if self.current.loss is not None:
            state["loss"] = self.current.loss
        state["t"] = torch.tensor(self.t)
        return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a state; the next step of the iteration is the one after it.

        Raises:
            ValueError: if the state is of another model or optimizer; nothing is changed then.
        """
        weights = self._checked_weights(state)
        optimizers = self._restored_optimizers(state)
        loss = state["loss"].clone() if "loss" in state else None
        with defer_sigint():  # never the weights of one state with the step of another
            self.model.load_state_dict(weights)
            self.optimizers, self._delivered = optimizers, True
            self.current = Step(int(state["t"]), loss, None, self.model)

    def _checked_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a state, if they fit the model."""
        weights = {name.removeprefix("model/"): v for name, v in state.items() if name.startswith("model/")}
        expected = self.model.state_dict()
        differing = sorted(set(weights) ^ set(expected))
        if differing := differing or [n for n in expected if expected[n].shape != weights[n].shape]:
            raise ValueError(f"the state is of another model: {differing[0]} differs (and {len(differing) - 1} more)")
        return weights

    def _restored_optimizers(self, state: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
        """New optimizers with the memory of a state, if that is complete and of the same optimizer."""
        parameters, memories = dict(self.model.named_parameters()), _memories_by_parameter(state)
        if unknown := sorted(set(memories) - set(parameters)):
            raise ValueError(f"the state has optimizer memory of unknown parameters: {unknown[0]}")
        optimizers = build_optimizers(self.model, self.cfg)
        optimizer_of = {p: optimizer for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
        keys = {name: memory_of(optimizer_of[parameter]) for name, parameter in parameters.items()}
        if "t" not in state or any(set(memory) != keys[name] for name, memory in memories.items()):
            raise ValueError(f"the state is incomplete or of another optimizer than {self.cfg.optimizer!r}")
        if int(state["t"]) and any(keys.values()) and not memories:
            raise ValueError(f"the state lacks the memory of optimizer {self.cfg.optimizer!r}: it is of another one")
        for name, memory in memories.items():
            parameter = parameters[name]
            optimizer_of[parameter].state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in memory.items()
            }
        return optimizers


def _memories_by_parameter(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The optimizer memory in a state, by parameter name and key."""
    memories: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimizer/"):
            _, owner, key = name.split("/")
            memories.setdefault(owner, {})[key] = value
    return memories


def train(model: nn.Module, task: Any, cfg: TrainConfig) -> Training:
    """Train `model` on `task`: an iterator of `Step`s, t = 0 (before any update), 1, ...

    Args:
        model: Any module with `model(batch.inputs)`; trained in place.
        task: Any object with `sample(n, seed=, device=)` and `loss(outputs, batch)`, such as a `Task`.
        cfg: Optimizer, length and data seed.
    """
    return Training(model, task, cfg)
