"""Conversion to and from TransformerLens's own models: native `TransformerBridge` on 4.x, `HookedTransformer` on 3.9.

    tl_model = to_tl(model)
    model = from_tl(tl_model)

Weights, config and linear attention are converted exactly in both directions; whatever has no counterpart raises.
"""

import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from math import sqrt
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plateaulens.models.config import ModelConfig
from plateaulens.models.transformer import Transformer

# Fields that have the same name in both configs.
SHARED = (
    *("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp", "act_fn", "attention_dir", "eps"),
    *("gated_mlp", "normalization_type", "positional_embedding_type", "rotary_base"),
)

# Fields that do not change the function computed: of the initial weights, the tokenizer, the origin of the weights.
IGNORED = {"device", "dtype", "model_name", "n_params", "seed", "initializer_range", "init_weights", "tokenizer_name",
        "default_prepend_bos", "tokenizer_prepends_bos", "tokenizer_appends_eos", "default_padding_side",
        "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "trust_remote_code",
        "train_seq_length"}  # fmt: skip

# `model_name` stores what TransformerLens has no field for: the kind of attention, and the lack of biases.
NAME_PREFIX, UNBIASED = "plateaulens-", "-unbiased"

# Endings of parameter names: of `Transformer` -> of the state dict of a native bridge.
BRIDGE_NAMES = {
    "embed.W_E": "embed.weight",
    "embed.W_pos": "embed.weight",
    "w_in.weight": "in.weight",
    "w_in.bias": "in.bias",
    "w_gate.weight": "gate.weight",
    "w_out.weight": "out.weight",
    "w_out.bias": "out.bias",
    "unembed.w.weight": "unembed.weight",
    **{f"{ln}.{ours}": f"{ln}.{theirs}" for ln in ("ln1", "ln2", "ln_final") for ours, theirs in
       (("w", "weight"), ("b", "bias"))},
}  # fmt: skip


def config_to_tl(cfg: ModelConfig) -> Any:
    """The `TransformerBridgeConfig` (4.x) or `HookedTransformerConfig` (3.9) of a `ModelConfig`.

    `init_scale` is multiplied into `initializer_range`; the kind of attention and the lack of biases are stored in
    `model_name`; `init` is left out, since the weights are given.

    Raises:
        ValueError: for post-norm, a scalar read-out or a padding token, which TransformerLens's own models lack.
    """
    for name, supported in (("norm_position", "pre"), ("readout", "tokens"), ("padding_idx", None)):
        if (value := getattr(cfg, name)) != supported:
            raise ValueError(
                f"TransformerLens's own models support {name}={supported!r} only, got {value!r}; "
                "analyze the pl.Transformer itself"
            )
    try:
        from transformer_lens import HookedTransformerConfig as Config
    except ImportError:
        from transformer_lens import TransformerBridgeConfig as Config
    rotary = {} if cfg.rotary_dim is None else {"rotary_dim": cfg.rotary_dim, "rotary_adjacent_pairs": True}
    tl_cfg = Config(
        **{name: getattr(cfg, name) for name in SHARED},
        **rotary,
        initializer_range=cfg.initializer_range * cfg.init_scale,  # pyright: ignore[reportCallIssue]  # of 3.9 and 4
        model_name=NAME_PREFIX + cfg.attention + UNBIASED * (not cfg.biases),  # pyright: ignore[reportCallIssue]
    )
    tl_cfg.seed = cfg.seed  # not through the constructor: on 3.9 that reseeds torch, numpy and random
    return tl_cfg


def config_from_tl(cfg: Any) -> ModelConfig:
    """The `ModelConfig` of a TransformerLens config.

    Attention is softmax, and there are biases (zero or not), unless `config_to_tl` stored something else.

    Raises:
        ValueError: for any field with a value that a `Transformer` does not support.
    """
    model_name = str(cfg.model_name)
    is_ours = model_name.startswith(NAME_PREFIX)
    ours = ModelConfig(
        **{name: getattr(cfg, name) for name in SHARED if getattr(cfg, name) is not None},
        attention=model_name.removeprefix(NAME_PREFIX).removesuffix(UNBIASED) if is_ours else "softmax",  # type: ignore[arg-type] # validated by ModelConfig,
        biases=not (is_ours and model_name.endswith(UNBIASED)),
        initializer_range=float(cfg.initializer_range),
        seed=cfg.seed or 0,
    )
    # Every other field must have the value that `config_to_tl` gives it; so fields that later versions of
    # TransformerLens add are refused too.
    equivalent = {"attn_scale": sqrt(ours.d_head), "n_key_value_heads": ours.n_heads, "d_vocab_out": ours.d_vocab,
            "architecture": "TransformerLensNative"}  # fmt: skip
    if hasattr(cfg, "architecture"):  # 4.x, whose own model always rotates whole heads in adjacent pairs
        equivalent |= {"rotary_dim": None, "rotary_adjacent_pairs": False}
    required = config_to_tl(ours).to_dict()
    for name, value in cfg.to_dict().items():
        if name in SHARED or name in IGNORED or name in equivalent and value == equivalent[name]:
            continue
        if name not in required or value != required[name]:
            raise ValueError(
                f"{name} must be {required.get(name)!r} for a Transformer, got {value!r}; "
                "change the config, or analyze the TransformerLens model itself"
            )
    return ours


@torch.no_grad()
def to_tl(model: Transformer) -> Any:
    """A copy as TransformerLens's own model, in eval mode, with the same weights, hook names and logits.

    Linear attention becomes a subclass of TransformerLens's attention; biases that a `Transformer` lacks are zero and
    frozen. Differences of a native bridge: an edit of `hook_resid_mid` does not reach the residual stream, an edit of
    `hook_attn_scores` (softmax) has no effect, and there are no `hook_rot_q` and `hook_rot_k`.

    Raises:
        ValueError: for architectures that TransformerLens's own models lack, see `config_to_tl`.
    """
    tl_cfg, kind = config_to_tl(model.cfg), {"device": model.W_E.device, "dtype": model.W_E.dtype}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # its initial weights are overwritten
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from transformer_lens import HookedTransformer

            tl_cfg.seed, tl_cfg.device, tl_cfg.dtype = None, str(kind["device"]), kind["dtype"]
            tl_model = HookedTransformer(tl_cfg)  # pyright: ignore[reportCallIssue]  # the class of 3.9
        except ImportError:
            from transformer_lens import TransformerBridge

            tl_model = TransformerBridge.boot_native(tl_cfg, **kind)  # pyright: ignore[reportAttributeAccessIssue]  # of 4
            tl_model.cfg.model_name = tl_cfg.model_name  # boot_native overwrites it
        tl_model.cfg.seed = model.cfg.seed
    for bias in _lacking(model, tl_model).values():
        bias.zero_().requires_grad_(False)
    for ours, theirs in _pairs(model, tl_model):
        theirs.copy_(ours)
    if model.cfg.attention == "linear":
        for block in tl_model.blocks:
            _make_linear(block.attn)
    return tl_model.eval()


@torch.no_grad()
def from_tl(tl_model: Any) -> Transformer:
    """A copy of a `HookedTransformer` (3.9) or native bridge (4.x) as a `Transformer`.

    Raises:
        ValueError: for another kind of model, a config field that a `Transformer` does not support, a nonzero bias
            where it has none (read-out, gated MLP), an unknown class of attention, or layers with different kinds of
            attention.
    """
    try:
        from transformer_lens import HookedTransformer as Model
    except ImportError:
        from transformer_lens import TransformerBridge as Model  # type: ignore[no-redef]
    if not isinstance(tl_model, Model):
        raise ValueError(f"from_tl needs a {Model.__name__}, got {type(tl_model).__name__}; analyze that model itself")
    cfg = config_from_tl(tl_model.cfg)
    kinds = {_attention_of(block.attn) for block in tl_model.blocks}
    if len(kinds) > 1:
        raise ValueError("attention must be of one kind in all layers, got linear and softmax")
    weights = next(tl_model.parameters())
    model = Transformer(cfg.replace(attention=kinds.pop()), weights.device).to(weights.dtype)
    for name, bias in _lacking(model, tl_model).items():
        if bias.any():
            raise ValueError(
                f"{name} must be zero because a Transformer has no such bias, got values up to {bias.abs().max():.3g}; "
                "load the model without weight processing (fold_ln=False)"
            )
    for ours, theirs in _pairs(model, tl_model):
        ours.copy_(theirs)
    return model


def _pairs(model: Transformer, tl_model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of corresponding weights of the two models, both writable and of the same shape."""
    theirs = tl_model.state_dict()
    if _is_hooked_transformer(theirs):  # `Transformer` has views of the same names
        lacking = _lacking(model, tl_model)
        for name, weight in tl_model.named_parameters():
            if name not in lacking:
                yield attrgetter(name)(model), weight
    else:  # 4.x stores weights two-dimensional, as `Transformer` does
        for name, weight in model.named_parameters():
            yield weight, theirs[_bridge_name(name)]


def _lacking(model: Transformer, tl_model: Any) -> dict[str, Tensor]:
    """The weights of the TransformerLens model that ours does not have, which are biases."""
    theirs = tl_model.state_dict()
    if not _is_hooked_transformer(theirs):
        known = {_bridge_name(name) for name, _ in model.named_parameters()}
        return {name: attrgetter(name)(tl_model) for name in theirs if name not in known}
    bare = ["unembed.b_U"] + ["attn.b_Q", "attn.b_K", "attn.b_V", "attn.b_O"] * (not model.cfg.biases)
    bare += ["mlp.b_in", "mlp.b_out"] * (not model.cfg.biases or model.cfg.gated_mlp)
    return {name: weight for name, weight in tl_model.named_parameters() if name.endswith(tuple(bare))}


def _is_hooked_transformer(weights: Mapping[str, Tensor]) -> bool:
    return "embed.W_E" in weights


def _bridge_name(name: str) -> str:
    """The name in a native bridge of a parameter of ours."""
    ending = next((ending for ending in BRIDGE_NAMES if name.endswith(ending)), "")
    return name.removesuffix(ending) + BRIDGE_NAMES.get(ending, "")


def _make_linear(attention: Any) -> None:
    """Turn an attention of TransformerLens into linear attention in place, with its weights and hooks."""
    linear = _attention_classes()[1]
    inner = getattr(attention, "original_component", attention)
    inner.__class__ = linear
    if inner is not attention:  # the bridge's hook; in __dict__, so that it is not registered a second time
        inner.__dict__["scores_hook"] = attention.hook_attn_scores


def _attention_of(attention: Any) -> str:
    """The kind of attention, "linear" or "softmax"; any other class raises."""
    softmax, linear = _attention_classes()
    inner = getattr(attention, "original_component", attention)
    if type(inner) not in (softmax, linear):
        raise ValueError(
            f"attention must be {softmax.__name__} or the linear attention of to_tl, got {type(inner).__name__}; "
            "analyze the TransformerLens model itself"
        )
    return "linear" if type(inner) is linear else "softmax"


@cache
def _attention_classes() -> tuple[type, type]:
    """TransformerLens's attention and a linear subclass; defined late, as a bridge takes seconds to import."""
    try:
        from transformer_lens.components import Attention  # pyright: ignore[reportMissingImports]  # of 3.9 only
    except ImportError:
        return _native_classes()

    class LinearAttention(Attention):
        def forward(self, query_input, key_input, value_input, past_kv_cache_entry=None, attention_mask=None, **_):
            q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
            offset = 0
            if past_kv_cache_entry is not None:
                offset = past_kv_cache_entry.past_keys.size(1)
                k, v = past_kv_cache_entry.append(k, v)
            if self.cfg.positional_embedding_type == "rotary":
                q = self.hook_rot_q(self.apply_rotary(q, offset, attention_mask))
                k = self.hook_rot_k(self.apply_rotary(k, 0, attention_mask))
            scores = self.calculate_attention_scores(q, k)
            if self.cfg.attention_dir == "causal":
                masked = self.apply_causal_mask(scores, offset, attention_mask)
                scores = masked.masked_fill(masked == float("-inf"), 0.0)
            z = self.calculate_z_scores(v, self.hook_pattern(self.hook_attn_scores(scores)))
            if self.cfg.use_attn_result:
                return self.hook_result(torch.einsum("bqhe,hem->bqhm", z, self.W_O)).sum(2) + self.b_O
            return F.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)

    return Attention, LinearAttention


def _native_classes() -> tuple[type, type]:
    from transformer_lens.model_bridge.sources.native import NativeAttention

    class LinearAttention(NativeAttention):
        def forward(self, hidden_states, attention_mask=None, position_ids=None, pattern_fn=None, **kwargs):
            batch, length, _ = hidden_states.shape
            heads = (self.n_heads, self.d_head)
            q, k, v = (part(hidden_states).unflatten(-1, heads).transpose(1, 2) for part in (self.q, self.k, self.v))
            if self.rotary is not None:
                q, k = self.rotary.apply_rope(q, k, position_ids=position_ids)
            masked = self.causal_mask[:length, :length] & self.causal
            if attention_mask is not None:
                masked = self._combine_attention_mask(masked, attention_mask, batch=batch)
            scores = (q @ k.transpose(-2, -1) / self.scale).masked_fill(masked, 0.0)
            pattern = self.scores_hook(scores)  # pyright: ignore[reportCallIssue]  # a module
            if pattern_fn is not None:
                pattern = pattern_fn(pattern)
            # Returning a pattern would make the bridge fire hook_attn_scores a second time.
            return self.o((pattern @ v).transpose(1, 2).flatten(2)), None

    return NativeAttention, LinearAttention
