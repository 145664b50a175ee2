"""Interventions on attention maps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.hooked import AttentionPattern, device_of, n_layers
from plateaulens.interventions.base import Edit, Intervention, digest, rows
from plateaulens.tasks import Task, task_from_json, task_to_json


@dataclass(frozen=True, eq=False)
class ScaleAttention(Intervention):
    """Multiply attention on the task's optimal map by `by`, and leave every other entry alone.

    Rows of the partial solution are left alone too: for moving-window sum with n=16 and k=2 that is 30
    scaled entries (arXiv 2506.13688, attention biasing, c = `by`). No renormalisation.
    """

    task: Task
    by: float

    def edits(self, model: Any) -> dict[str, Edit]:
        maps = self.task.optimal_attention()
        if maps is None:
            raise ValueError(f"ScaleAttention needs a task with an optimal map; {self.task!r} has none")
        if len(maps) > n_layers(model):
            raise ValueError(f"{self.task!r} has {len(maps)} maps and the model {n_layers(model)} layers")
        return {
            f"blocks.{n_layers(model) - len(maps) + i}.attn.hook_pattern": self._edit(omega.to(device_of(model)))
            for i, omega in enumerate(maps)
            if omega is not None
        }

    def _edit(self, omega: Tensor) -> Edit:
        factor = torch.where(omega[0], self.by, 1.0)
        for output in self.task.partial_positions:
            factor[self.task.prompt_len - 1 + output] = 1.0
        return lambda pattern: pattern * rows(factor, pattern, "ScaleAttention's map").to(pattern.dtype)

    def to_json(self) -> dict[str, Any]:
        return {"intervention": "ScaleAttention", "task": task_to_json(self.task), "by": self.by}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ScaleAttention":
        return cls(task_from_json(values["task"]), values["by"])


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

    @property
    def held(self) -> AttentionPattern:
        """The maps that are put in."""
        assert isinstance(self.pattern, AttentionPattern)
        return self.pattern

    def edits(self, model: Any) -> dict[str, Edit]:
        return {
            f"blocks.{layer}.attn.hook_pattern": self._edit(full.to(device_of(model)))
            for layer, full in self.held.maps.items()
        }

    @staticmethod
    def _edit(full: Tensor) -> Edit:
        def fix(pattern: Tensor) -> Tensor:
            part = rows(full, pattern, "FixAttention's map")
            return part.expand(*pattern.shape[: 4 - part.ndim], *part.shape).to(pattern.dtype)

        return fix

    def check(self, tokens: Int[Tensor, "batch pos"]) -> None:
        prompts = self.held.prompts
        if prompts is None or tokens.shape[1] == 1:  # one token: a later step of cached decoding
            return
        seen = tokens[:, : prompts.shape[1]].to(prompts.device)
        if seen.shape != prompts.shape or not torch.equal(seen, prompts):
            raise ValueError(
                "this pattern came from other prompts than the model is being run on; "
                'fix its average instead: pattern.mean("batch")'
            )

    def to_json(self) -> dict[str, Any]:
        maps = {str(layer): digest(m) for layer, m in self.held.maps.items()}
        prompts = self.held.prompts
        return {"intervention": "FixAttention", "maps": maps, "prompts": None if prompts is None else digest(prompts)}

    def tensors(self) -> dict[str, Tensor]:
        held = [*self.held.maps.values()] + ([] if self.held.prompts is None else [self.held.prompts])
        return {digest(t): t for t in held}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "FixAttention":
        maps = {int(layer): tensors[name] for layer, name in values["maps"].items()}
        prompts = values["prompts"]
        return cls(AttentionPattern(maps, None if prompts is None else tensors[prompts]))

    def __repr__(self) -> str:
        shapes = {layer: list(m.shape) for layer, m in self.held.maps.items()}
        return f"FixAttention({shapes})"
