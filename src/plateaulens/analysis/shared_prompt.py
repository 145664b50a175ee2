"""`SharedPromptPass`: answers under many patches at once, with the prompt run only once.

`patch_across_steps` takes it for patches in the last layer of a `Transformer`. It takes about 0.55 (teacher-forced) and
0.67 (decoded) of the time of whole sequences; `benchmarks/interventions.py` compares with a loop of single patches.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.batch import Batch
from plateaulens.hooks import active_interventions, has_user_hooks, n_layers
from plateaulens.models.transformer import Transformer
from plateaulens.protocols import HookedModel
from plateaulens.tracing.traces import Trace

# What a trace of the answer rows alone can hold.
ANSWER_VALUES = {"answer_outputs", "answer_entropy", "generated"}
# Hooks of `Transformer` which the keys and values of the same layer do not depend on.
AFTER_KEYS_AND_VALUES = (
    *("attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out"),
    *("hook_resid_mid", "ln2.*", "mlp.*", "hook_mlp_out", "hook_resid_post"),
)


class SharedPromptPass:
    """Traces of the answer rows of a `Transformer`, for copies of a batch with one patch each.

    The prompt is run once, and its keys and values are copied for each patch. With teacher forcing, one copy of the
    answer rows is run up to the last layer's queries, keys and values, and from there on one for each patch.

    Args:
        model: a model for which `is_exact` holds.
        batch: the prompts.
    """

    @staticmethod
    def is_exact(model: HookedModel, batch: Batch, hook_names: Sequence[str]) -> bool:
        """Whether patches at these hooks give what a pass over whole sequences gives.

        The hooks have to come after the last layer's keys and values, all answers have to be at the same positions, and
        no other hooks or interventions may be on the model.
        """
        if not isinstance(model, Transformer) or model.kv_cache(1) is None:
            return False
        if active_interventions(model) or has_user_hooks(model):
            return False
        last_layer = f"blocks.{n_layers(model) - 1}."
        globs = (*(last_layer + name for name in AFTER_KEYS_AND_VALUES), "ln_final.*", "unembed.*")
        starts = batch.answer_positions[:, 0]
        same_positions = bool((starts == starts[0]).all() and (batch.answer_positions >= 0).all())
        has_prompt = not batch.n_new and int(starts[0]) > 0
        after = all(any(fnmatchcase(name, glob) for glob in globs) for name in hook_names)
        return has_prompt and same_positions and after

    @without_gradients
    def __init__(self, model: Transformer, batch: Batch) -> None:
        self.model, self.batch, self.first_row = model, batch, batch.prompt_len - 1
        self.prompt_cache: Any = model.kv_cache(len(batch))
        model(batch.inputs[:, : self.first_row], return_type=None, past_kv_cache=self.prompt_cache)

    @without_gradients
    def trace(self, stacked: Batch, requires: Sequence[str]) -> Trace:
        """What `requires` names of `ANSWER_VALUES`, under the interventions that are attached.

        Args:
            stacked: copies of the batch, one after another.
            requires: names of `ANSWER_VALUES`.
        """
        copies, values = len(stacked) // len(self.batch), {}
        if {"answer_outputs", "answer_entropy"} & set(requires):
            values["answer_outputs"] = self._teacher_forced(stacked, copies)
        if "generated" in requires:
            values["generated"] = self._decoded(stacked, copies)
        return Trace(
            batch=stacked,
            cache={},
            n_layers=n_layers(self.model),
            d_vocab=int(self.model.cfg.d_vocab),
            _values=values,
        )

    def _teacher_forced(self, stacked: Batch, copies: int) -> Float[Tensor, "batch out d_vocab"]:
        n, depth = len(self.batch), n_layers(self.model)
        last: Any = self.model.blocks[-1]
        one_cache, last_cache = self._copied_cache(1, range(depth)), self._copied_cache(copies, [depth - 1])
        handles = [last.register_forward_pre_hook(lambda block, args: (args[0].repeat(copies, 1, 1), last_cache))]
        for projection in (last.attn.q, last.attn.k, last.attn.v):  # equal for all copies: computed once
            handles.append(projection.register_forward_pre_hook(lambda linear, args: (args[0][:n],)))
            handles.append(projection.register_forward_hook(lambda linear, args, output: output.repeat(copies, 1, 1)))
        try:
            logits = self.model(self.batch.inputs[:, self.first_row :], past_kv_cache=one_cache)
        finally:
            for handle in handles:
                handle.remove()
        rows = (stacked.answer_positions - self.first_row).clamp(min=0)
        return logits.gather(1, rows[..., None].expand(-1, -1, logits.shape[-1]))

    def _decoded(self, stacked: Batch, copies: int) -> Int[Tensor, "batch out"]:
        """The tokens of `greedy_decode`."""
        cache = self._copied_cache(copies, range(n_layers(self.model)))
        tokens = [stacked.tokens[:, self.first_row, None]]
        for _ in range(stacked.answer_positions.shape[1]):
            tokens.append(self.model(tokens[-1], past_kv_cache=cache)[:, -1].argmax(-1, keepdim=True))
        return torch.cat(tokens[1:], 1)

    def _copied_cache(self, copies: int, layers: Sequence[int]) -> Any:
        """The prompt's keys and values in these layers, `copies` times."""
        cfg, n = self.model.cfg, len(self.batch)
        cache: Any = self.model.kv_cache(copies * n)
        no_rows = self.model.W_E.new_empty(n, 0, cfg.n_heads, cfg.d_head)
        for layer in layers:
            k, v = self.prompt_cache.append(layer, no_rows, no_rows)  # returns what is stored
            cache.append(layer, k.repeat(copies, 1, 1, 1), v.repeat(copies, 1, 1, 1))
        return cache
