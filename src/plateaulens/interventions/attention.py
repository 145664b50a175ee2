"""Interventions on attention maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.hooks import AttentionPattern, device_of, n_layers, pattern_hook
from plateaulens.interventions.base import Call, Edit, Intervention
from plateaulens.interventions.positions import only, rows
from plateaulens.tasks import Task


@dataclass(frozen=True, eq=False, repr=False)
class ScaleAttention(Intervention):
    """Multiply attention on the task's optimal map by `by`, and leave every other entry alone.

    Rows of the partial solution are left alone too: for moving-window sum with n=16 and k=2 that is 30
    scaled entries (arXiv 2506.13688, attention biasing, c = `by`). A task with fewer maps than the model
    has layers acts on the last layers; maps that differ from prompt to prompt follow the prompts.

    Args:
        task: whose map.
        factor: the factor.
        renormalize: give each row the sum it had; a choice for softmax attention that the paper does not make.
    """

    task: Task
    factor: float
    renormalize: bool = False

    def edits(self, model: Any) -> dict[str, Edit]:
        return {pattern_hook(layer): self._edit(omega) for layer, omega in _maps_by_layer(self.task, model).items()}

    def _edit(self, omega: "_Map") -> Edit:
        def scale(pattern: Tensor, call: Call) -> Tensor:
            scaled = torch.where(omega.at(pattern, call, partial=False), pattern * self.factor, pattern)
            if self.renormalize:
                scaled = scaled * (pattern.sum(-1, keepdim=True) / scaled.sum(-1, keepdim=True))
            return scaled

        return scale


@dataclass(frozen=True, eq=False, repr=False)
class OptimalAttention(Intervention):
    """Fix attention to the task's optimal map: each of its rows attends to the row's keys equally.

    Rows of which the map says nothing are left alone.

    Args:
        task: whose map.
        total: sum of a fixed row; 1 is what softmax attention would have.
    """

    task: Task
    total: float = 1.0

    def edits(self, model: Any) -> dict[str, Edit]:
        return {pattern_hook(layer): self._edit(omega) for layer, omega in _maps_by_layer(self.task, model).items()}

    def _edit(self, omega: "_Map") -> Edit:
        def fix(pattern: Tensor, call: Call) -> Tensor:
            here = omega.at(pattern, call, partial=True)
            count = here.sum(-1, keepdim=True)
            return torch.where(count > 0, here * (self.total / count.clamp(min=1)), pattern).to(pattern.dtype)

        return fix


@dataclass(frozen=True, eq=False, repr=False)
class FixAttention(Intervention):
    """Replace attention by a given map: a pattern of a trace, or a tensor for one layer.

    Args:
        pattern: an `AttentionPattern`, or a tensor [query key], [head query key] or
            [batch head query key]; axes that are given must have the model's size.
        layer: the layer of a tensor; a pattern of a trace brings its own.

    A pattern from a trace holds for the prompts it came from; `.mean("batch")` makes it fit any.
    """

    pattern: AttentionPattern | Float[Tensor, "*batch query key"]
    layer: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.pattern, Tensor):
            if not 2 <= self.pattern.ndim <= 4:
                raise ValueError(
                    f"a fixed map is [query key], [head query key] or [batch head query key], "
                    f"got shape {list(self.pattern.shape)}"
                )
            object.__setattr__(self, "pattern", AttentionPattern({self.layer: self.pattern}))
        if not self.held.maps:
            raise ValueError("this pattern holds no map, so nothing would be fixed; trace the hook_pattern sites")

    @property
    def held(self) -> AttentionPattern:
        """The maps that are put in."""
        assert isinstance(self.pattern, AttentionPattern)
        return self.pattern

    def edits(self, model: Any) -> dict[str, Edit]:
        return {
            pattern_hook(layer): self._edit(full.to(device_of(model)), pattern_hook(layer))
            for layer, full in self.held.maps.items()
        }

    def _edit(self, full: Tensor, site: str) -> Edit:
        def fix(pattern: Tensor, call: Call) -> Tensor:
            self._refuse_other_prompts(call)
            return rows(full, pattern, call, site).to(pattern.dtype)

        return fix

    def _refuse_other_prompts(self, call: Call) -> None:
        prompts = self.held.prompts
        if prompts is None or call.tokens is None:
            return
        seen = call.tokens[:, : prompts.shape[1]].to(prompts.device)
        if seen.shape != prompts.shape or not torch.equal(seen, prompts):
            raise ValueError(
                "this pattern came from other prompts than the model is being run on; "
                'fix its average instead: pattern.mean("batch")'
            )


@dataclass(frozen=True, eq=False, repr=False)
class AblateHeads(Intervention):
    """Take from attention heads what they know, by one of three modes that can differ qualitatively.

    Args:
        heads: (layer, head) pairs.
        mode: "mean", the head's average pattern over the batch (arXiv 2410.22244's code; a head that looks
            at positions only is unchanged by it); "uniform", equal attention on every visible key; "zero",
            no attention at all (the same as zeroing `hook_z`).

    Raises:
        ValueError: for an unknown mode or no heads; when applied, for a head that is not there, or a batch
            of one with "mean", which would change nothing.
    """

    heads: Sequence[tuple[int, int]]
    mode: str = "mean"

    def __post_init__(self) -> None:
        look_up("mode", self.mode, dict.fromkeys(("mean", "uniform", "zero")))
        object.__setattr__(self, "heads", tuple((int(layer), int(head)) for layer, head in self.heads))
        if not self.heads:
            raise ValueError("AblateHeads needs at least one (layer, head) pair")

    def edits(self, model: Any) -> dict[str, Edit]:
        bidirectional = getattr(model.cfg, "attention_dir", "causal") == "bidirectional"
        by_layer: dict[int, list[int]] = {}
        for layer, head in self.heads:
            by_layer.setdefault(layer, []).append(head)
        return {pattern_hook(layer): self._edit(heads, layer, bidirectional) for layer, heads in by_layer.items()}

    def _edit(self, heads: list[int], layer: int, bidirectional: bool) -> Edit:
        def ablate(pattern: Tensor, call: Call) -> Tensor:
            if self.mode == "mean":
                new = batch_mean(pattern, self)
            elif self.mode == "zero":
                new = torch.zeros_like(pattern)
            else:
                seen = torch.ones_like(pattern)
                seen = seen if bidirectional else seen.tril(pattern.shape[-1] - pattern.shape[-2])
                new = seen / seen.sum(-1, keepdim=True)
            return only(new, pattern, call, pattern_hook(layer), heads, None)

        return ablate


def batch_mean(tensor: Tensor, what: Intervention) -> Tensor:
    """The mean over the batch, for each example; a batch of one would be left as it is and raises."""
    if len(tensor) < 2:
        raise ValueError(f"{what!r} cannot act on a batch of one: its mean is itself; run more prompts at once")
    return tensor.mean(0, keepdim=True).expand_as(tensor)


@dataclass(frozen=True, eq=False)
class _Map:
    """The optimal map of one layer, constant or worked out from the prompts."""

    task: Task
    index: int
    constant: Bool[Tensor, "1 query key"] | None

    def at(self, pattern: Tensor, call: Call, partial: bool) -> Bool[Tensor, "batch head query key"]:
        omega = self._whole(call)
        if not partial:
            omega = omega.clone()
            omega[:, [self.task.prompt_len - 1 + output for output in self.task.partial_positions]] = False
        return rows(omega[:, None].expand(len(pattern), -1, -1, -1), pattern, call, pattern_hook(0)).expand_as(pattern)

    def _whole(self, call: Call) -> Bool[Tensor, "batch query key"]:
        if self.constant is not None:
            return self.constant
        if call.tokens is None or call.tokens.shape[1] < self.task.prompt_len:
            raise ValueError(f"the map of {self.task!r} needs the whole prompt; run the model on batch.inputs")
        prompt = call.tokens[:, : self.task.prompt_len]
        maps = self.task.optimal_attention(self.task.batch(prompt, prompt.new_zeros(len(prompt), self.task.n_out)))
        assert maps is not None
        return maps[self.index]  # type: ignore[return-value]


def _maps_by_layer(task: Task, model: Any) -> dict[int, _Map]:
    """Layer -> the task's map there; tasks with fewer maps than the model has layers take the last."""
    maps = task.optimal_attention(task.sample(2, seed=0, device=device_of(model)))
    if maps is None:
        raise ValueError(
            f"this needs a task with an optimal map; {task!r} has none; fix a map of your own: FixAttention"
        )
    if len(maps) > n_layers(model):
        raise ValueError(f"{task!r} has {len(maps)} maps and the model {n_layers(model)} layers; use a deeper model")
    if model.cfg.n_ctx < task.n_ctx:
        raise ValueError(
            f"{task!r} has {task.n_ctx} tokens and the model n_ctx={model.cfg.n_ctx}: it learns another task"
        )
    first = n_layers(model) - len(maps)
    return {
        first + i: _Map(task, i, omega.to(device_of(model)) if len(omega) == 1 else None)
        for i, omega in enumerate(maps)
        if omega is not None
    }
