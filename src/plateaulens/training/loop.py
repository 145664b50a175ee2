"""`train`: an iterator over optimizer updates. The loop belongs to the caller.

    for step in train(model, task, TrainConfig(steps=400)):
        if step.t % 5 == 0:
            run.log(step.t, measure(model, eval_batch, metrics))

No logging, disk or plotting happens inside. `model` is trained in place. Its data are a pure function
of (seed, step), so a fork or a resumed training sees the very batches of the original.
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
    """One completed update.

    Attributes:
        t: updates completed; 0 is the untouched model.
        loss: loss of the update that led to t, at the weights of t-1; None at t = 0.
        batch: the batch of that update; None at t = 0 and right after a resume.
        model: the model being trained.
    """

    t: int
    loss: Float[Tensor, ""] | None
    batch: Any
    model: nn.Module


def batch_seed(seed: int, t: int) -> int:
    """The seed of the batch that leads to step t: well mixed, so that no two runs share a stream."""
    return int(np.random.SeedSequence((seed, t)).generate_state(1)[0])


class Training:
    """A training in progress; iterate over it, stop, go on, fork it, save its state.

    Exact on one machine, torch version and thread count: a fork or a resumed training gives the same
    bytes as one that was never interrupted.
    """

    def __init__(self, model: nn.Module, task: Any, cfg: TrainConfig) -> None:
        self.model, self.task, self.cfg = model, task, cfg
        self.optimizers = build_optimizers(model, cfg)
        self.current = Step(0, None, None, model)
        self._delivered = False

    @property
    def t(self) -> int:
        """Updates completed."""
        return self.current.t

    def __iter__(self) -> "Training":
        return self

    def __next__(self) -> Step:
        if self._delivered:
            if self.t >= self.cfg.steps:
                raise StopIteration
            with defer_sigint(), torch.enable_grad():
                self.current, self._delivered = self._update(), False
        self._delivered = True  # a step that an interrupt kept from the caller is delivered next time
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
        """The steps up to and including t; the training can go on afterwards.

        Raises:
            ValueError: when t lies beyond the configured number of steps.
        """
        if t > self.cfg.steps:
            raise ValueError(f"until={t} lies beyond the {self.cfg.steps} steps of the TrainConfig; raise its steps")
        return self._until(t)  # a generator would raise only once it is iterated

    def _until(self, t: int) -> Iterator[Step]:
        while self.t < t or not self._delivered and self.t == t:
            yield next(self)

    def fork(self) -> "Training":
        """An independent copy: weights, optimizer, step; the data to come are the same. No hooks.

        Raises:
            ValueError: while interventions are active on the model.
        """
        if on := active_interventions(self.model):
            raise ValueError(f"cannot fork while {on} is active on the model; leave the `with intervene(...)` first")
        self.model.zero_grad()
        model = deepcopy(self.model)
        if hasattr(model, "reset_hooks"):
            model.reset_hooks()  # type: ignore[operator]
        copy = Training(model, self.task, self.cfg)
        copy.load_state_dict(self.state_dict())
        copy._delivered = self._delivered
        return copy

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a later training needs to go on exactly, as flat names and tensors (copies).

        Weights, optimizer and step; never hooks, which belong to the caller's text.
        """
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
        """Take over a state; the next step is the one after it.

        Raises:
            ValueError: when the state belongs to another model or optimizer; nothing is changed then.
        """
        parameters = dict(self.model.named_parameters())
        weights = {name.removeprefix("model/"): v for name, v in state.items() if name.startswith("model/")}
        own = self.model.state_dict()
        if wrong := sorted(set(weights) ^ set(own)) or [n for n in own if own[n].shape != weights[n].shape]:
            raise ValueError(f"the state is of another model: {wrong[0]} differs (and {len(wrong) - 1} more)")
        slots: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer/"):
                _, owner, key = name.split("/")
                slots.setdefault(owner, {})[key] = value
        if lost := sorted(set(slots) - set(parameters)):
            raise ValueError(f"the state holds optimizer memory for unknown parameters: {lost[0]}")
        optimizers = build_optimizers(self.model, self.cfg)
        owner_of = {p: optimizer for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
        keys = {name: memory_of(owner_of[parameter]) for name, parameter in parameters.items()}
        if "t" not in state or any(set(memory) != keys[name] for name, memory in slots.items()):
            raise ValueError(f"the state is incomplete or of another optimizer than {self.cfg.optimizer!r}")
        if int(state["t"]) and any(keys.values()) and not slots:
            raise ValueError(f"the state lacks the memory of optimizer {self.cfg.optimizer!r}: it is of another one")
        for name, memory in slots.items():
            parameter = parameters[name]
            owner_of[parameter].state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in memory.items()
            }
        loss = state["loss"].clone() if "loss" in state else None
        with defer_sigint():  # the weights of one state with the step of another would be a silent wrong
            self.model.load_state_dict(weights)
            self.optimizers, self._delivered = optimizers, True
            self.current = Step(int(state["t"]), loss, None, self.model)


def train(model: nn.Module, task: Any, cfg: TrainConfig) -> Training:
    """Train `model` on `task`; returns an iterator of `Step`s, t = 0 (before any update), 1, ...

    Args:
        model: anything with `model(batch.inputs)`; trained in place.
        task: anything with `sample(n, seed=, device=)` and `loss(outputs, batch)`.
        cfg: how.
    """
    return Training(model, task, cfg)
