"""Interventions on attention maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plateaulens._registry import check_choices
from plateaulens.hooks import AttentionPattern, device_of, n_layers, pattern_hook
from plateaulens.interventions.base import Call, Edit, Intervention
from plateaulens.interventions.positions import replace_at, rows_of_call
from plateaulens.protocols import HookedModel
from plateaulens.tasks import Task


@dataclass(frozen=True, eq=False, repr=False)
class ScaleAttention(Intervention):
    """Multiply attention on the task's optimal map by a factor and leave all other entries unchanged.

    This is attention biasing with c = `factor` (arXiv 2506.13688). Rows of the partial solution are unchanged too: for
    moving-window sum with n=16 and k=2, 30 entries are scaled. If the task has fewer maps than the model has layers,
    the last layers are scaled. Maps that depend on the prompt are computed from the prompts the model runs on.

    Args:
        task: Task whose optimal map is used.
        factor: Factor on the entries of the map.
        renormalize: Whether each row keeps its sum, for softmax attention; the paper does not renormalize.
    """

    task: Task
    factor: float
    renormalize: bool = False

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        return {pattern_hook(layer): self._edit(omega) for layer, omega in _maps_by_layer(self.task, model).items()}

    def _edit(self, omega: "_Map") -> Edit:
        def scale(pattern: Tensor, call: Call) -> Tensor:
            scaled = torch.where(omega.mask(pattern, call, include_partial=False), pattern * self.factor, pattern)
            if self.renormalize:
                scaled = scaled * (pattern.sum(-1, keepdim=True) / scaled.sum(-1, keepdim=True))
            return scaled

        return scale


@dataclass(frozen=True, eq=False, repr=False)
class OptimalAttention(Intervention):
    """Replace attention by the task's optimal map: each row of the map attends equally to its keys.

    Rows without an entry in the map are unchanged.

    Args:
        task: Task whose optimal map is used.
        total: Sum of each replaced row; softmax attention has 1.
    """

    task: Task
    total: float = 1.0

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        return {pattern_hook(layer): self._edit(omega) for layer, omega in _maps_by_layer(self.task, model).items()}

    def _edit(self, omega: "_Map") -> Edit:
        def fix(pattern: Tensor, call: Call) -> Tensor:
            mask = omega.mask(pattern, call, include_partial=True)
            count = mask.sum(-1, keepdim=True)
            return torch.where(count > 0, mask * (self.total / count.clamp(min=1)), pattern).to(pattern.dtype)

        return fix


@dataclass(frozen=True, eq=False, repr=False)
class FixAttention(Intervention):
    """Replace attention by given maps: the pattern of a trace, or a tensor for one layer.

    The pattern of a trace applies to the prompts of the trace only; `pattern.mean("batch")` applies to any prompts.

    Args:
        pattern: An `AttentionPattern`, or a tensor [query key], [head query key] or [batch head query key] whose axes
            have the model's sizes.
        layer: Layer of a tensor; an `AttentionPattern` has its own layers.

    Raises:
        ValueError: for a tensor of another number of axes, or a pattern without maps; when applied, for other prompts
            than those of the pattern.
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
        if not self._pattern.maps:
            raise ValueError("the pattern has no maps; trace the hooks blocks.*.attn.hook_pattern to get some")

    @property
    def _pattern(self) -> AttentionPattern:
        assert isinstance(self.pattern, AttentionPattern)
        return self.pattern

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        return {
            pattern_hook(layer): self._edit(full.to(device_of(model)), pattern_hook(layer))
            for layer, full in self._pattern.maps.items()
        }

    def _edit(self, full: Tensor, site: str) -> Edit:
        def fix(pattern: Tensor, call: Call) -> Tensor:
            self._refuse_other_prompts(call)
            return rows_of_call(full, pattern, call, site).to(pattern.dtype)

        return fix

    def _refuse_other_prompts(self, call: Call) -> None:
        prompts = self._pattern.prompts
        if prompts is None or call.tokens is None:
            return
        current = call.tokens[:, : prompts.shape[1]].to(prompts.device)
        if current.shape != prompts.shape or not torch.equal(current, prompts):
            raise ValueError(
                "the pattern comes from other prompts than the model runs on; "
                'use its average over the prompts: pattern.mean("batch")'
            )


@dataclass(frozen=True, eq=False, repr=False)
class AblateHeads(Intervention):
    """Replace the attention patterns of heads, by one of three modes, whose results can differ qualitatively.

    Args:
        heads: (layer, head) pairs.
        mode: "mean", the head's pattern averaged over the batch (as in the code of arXiv 2410.22244; it does not change
            a head that attends by position only); "uniform", equal attention to every visible key; "zero", no
            attention (the same as zeros at `hook_z`).

    Raises:
        ValueError: for an unknown mode or no heads; when applied, for a head that does not exist, or a batch of one
            with "mean", which would change nothing.
    """

    heads: Sequence[tuple[int, int]]
    mode: Literal["mean", "uniform", "zero"] = "mean"

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "heads", tuple((int(layer), int(head)) for layer, head in self.heads))
        if not self.heads:
            raise ValueError("AblateHeads needs at least one (layer, head) pair")

    def edits(self, model: HookedModel) -> dict[str, Edit]:
        bidirectional = getattr(model.cfg, "attention_dir", "causal") == "bidirectional"
        by_layer: dict[int, list[int]] = {}
        for layer, head in self.heads:
            by_layer.setdefault(layer, []).append(head)
        return {
            pattern_hook(layer): self._edit(heads, pattern_hook(layer), bidirectional=bidirectional)
            for layer, heads in by_layer.items()
        }

    def _edit(self, heads: list[int], site: str, *, bidirectional: bool) -> Edit:
        def ablate(pattern: Tensor, call: Call) -> Tensor:
            if self.mode == "mean":
                new = batch_mean(pattern, self)
            elif self.mode == "zero":
                new = torch.zeros_like(pattern)
            else:
                visible = torch.ones_like(pattern)
                visible = visible if bidirectional else visible.tril(pattern.shape[-1] - pattern.shape[-2])
                new = visible / visible.sum(-1, keepdim=True)
            return replace_at(pattern, new, call, site, heads=heads)

        return ablate


def batch_mean(tensor: Float[Tensor, "batch ..."], intervention: Intervention) -> Float[Tensor, "batch ..."]:
    """The mean over the batch, repeated for each example.

    Raises:
        ValueError: for a batch of one, which equals its mean.
    """
    if len(tensor) < 2:
        raise ValueError(f"{intervention!r} would change nothing in a batch of one; run more prompts at once")
    return tensor.mean(0, keepdim=True).expand_as(tensor)


@dataclass(frozen=True, eq=False)
class _Map:
    """The optimal attention map of one layer, either constant or computed from the prompts."""

    task: Task
    index: int
    constant: Bool[Tensor, "1 query key"] | None

    def mask(self, pattern: Tensor, call: Call, *, include_partial: bool) -> Bool[Tensor, "batch head query key"]:
        """The entries of the map in this call, with or without the rows of the partial solution."""
        omega = self._over_sequences(call)
        if not include_partial:
            omega = omega.clone()
            omega[:, [self.task.prompt_len - 1 + output for output in self.task.partial_positions]] = False
        full = omega[:, None].expand(len(pattern), -1, -1, -1)
        return rows_of_call(full, pattern, call, pattern_hook(0)).expand_as(pattern)

    def _over_sequences(self, call: Call) -> Bool[Tensor, "batch query key"]:
        if self.constant is not None:
            return self.constant
        if call.tokens is None or call.tokens.shape[1] < self.task.prompt_len:
            raise ValueError(f"the optimal map of {self.task!r} needs whole prompts; run the model on batch.inputs")
        prompt = call.tokens[:, : self.task.prompt_len]
        maps = self.task.optimal_attention(self.task.batch(prompt, prompt.new_zeros(len(prompt), self.task.n_out)))
        assert maps is not None
        return maps[self.index]  # type: ignore[return-value]


def _maps_by_layer(task: Task, model: HookedModel) -> dict[int, _Map]:
    """Layer -> the task's optimal map there; a task with fewer maps than the model has layers uses the last layers.

    Raises:
        ValueError: for a task without optimal maps, or one that does not fit the model.
    """
    maps = task.optimal_attention(task.sample(2, seed=0, device=device_of(model)))
    if maps is None:
        raise ValueError(f"{task!r} has no optimal attention map; give a map of your own to FixAttention")
    if len(maps) > n_layers(model):
        raise ValueError(f"{task!r} has {len(maps)} maps and the model {n_layers(model)} layers; use a deeper model")
    if model.cfg.n_ctx < task.n_ctx:
        raise ValueError(
            f"{task!r} has {task.n_ctx} tokens and the model n_ctx={model.cfg.n_ctx}; use the task it was trained on"
        )
    first = n_layers(model) - len(maps)
    return {
        first + i: _Map(task, i, omega.to(device_of(model)) if len(omega) == 1 else None)
        for i, omega in enumerate(maps)
        if omega is not None
    }
