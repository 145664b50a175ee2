"""To and from TransformerLens's own models: native `TransformerBridge` on 4.x, `HookedTransformer` on 3.9.

Weights, config and linear attention are carried exactly both ways; what cannot be carried is refused.
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

# Fields that both configs have under one name.
SHARED = (
    *("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp", "act_fn", "attention_dir", "eps"),
    *("gated_mlp", "normalization_type", "positional_embedding_type", "rotary_base"),
)

# Fields that say nothing about the function computed: of the initial weights, of strings, of where weights came from.
FREE = {"device", "dtype", "model_name", "n_params", "seed", "initializer_range", "init_weights", "tokenizer_name",
        "default_prepend_bos", "tokenizer_prepends_bos", "tokenizer_appends_eos", "default_padding_side",
        "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "trust_remote_code",
        "train_seq_length"}  # fmt: skip

# `model_name` carries what TransformerLens has no field for: the kind of attention, and whether there are no biases.
MARK, UNBIASED = "plateaulens-", "-unbiased"

# Endings of our parameter names and of a native bridge's state dict.
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

    `init_scale` is multiplied into `initializer_range`; kind of attention and lack of biases go into `model_name`;
    `init` is left out, for it says nothing about given weights.

    Raises:
        ValueError: for post-norm, a scalar read-out or a padding token, which TransformerLens's own models lack.
    """
    for name, has in (("norm_position", "pre"), ("readout", "tokens"), ("padding_idx", None)):
        if (got := getattr(cfg, name)) != has:
            raise ValueError(f"TransformerLens's own models know {name}={has!r} only, got {got!r}; keep ours")
    try:
        from transformer_lens import HookedTransformerConfig as Config
    except ImportError:
        from transformer_lens import TransformerBridgeConfig as Config
    rotary = {} if cfg.rotary_dim is None else {"rotary_dim": cfg.rotary_dim, "rotary_adjacent_pairs": True}
    tl_cfg = Config(
        **{name: getattr(cfg, name) for name in SHARED},
        **rotary,
        initializer_range=cfg.initializer_range * cfg.init_scale,
        model_name=MARK + cfg.attention + UNBIASED * (not cfg.biases),
    )
    tl_cfg.seed = cfg.seed  # not through the constructor: on 3.9 that reseeds torch, numpy and random
    return tl_cfg


def config_from_tl(cfg: Any) -> ModelConfig:
    """The `ModelConfig` of a TransformerLens config.

    Attention is softmax, and there are biases (zero or not), unless `config_to_tl` marked it otherwise.

    Raises:
        ValueError: for any field whose value a `Transformer` cannot honor.
    """
    name = str(cfg.model_name)
    marked = name.startswith(MARK)
    ours = ModelConfig(
        **{name: getattr(cfg, name) for name in SHARED if getattr(cfg, name) is not None},
        attention=name.removeprefix(MARK).removesuffix(UNBIASED) if marked else "softmax",
        biases=not (marked and name.endswith(UNBIASED)),
        initializer_range=float(cfg.initializer_range),
        seed=cfg.seed or 0,
    )
    # Every field is refused unless it has the value that our own architecture gives it, so that fields which
    # TransformerLens adds later are refused too.
    same = {"attn_scale": sqrt(ours.d_head), "n_key_value_heads": ours.n_heads, "d_vocab_out": ours.d_vocab,
            "architecture": "TransformerLensNative"}  # fmt: skip
    if hasattr(cfg, "architecture"):  # 4.x, whose own model turns whole heads by default, always in adjacent pairs
        same |= {"rotary_dim": None, "rotary_adjacent_pairs": False}
    needed = config_to_tl(ours).to_dict()
    for name, got in cfg.to_dict().items():
        if name in SHARED or name in FREE or name in same and got == same[name]:
            continue
        if name not in needed or got != needed[name]:
            raise ValueError(
                f"{name} must be {needed.get(name)!r} for a Transformer, got {got!r}; "
                "change the config, or analyze the TransformerLens model itself"
            )
    return ours


@torch.no_grad()
def to_tl(model: Transformer) -> Any:
    """A copy as TransformerLens's own model, in eval mode: the same weights, hooks and logits.

    Linear attention becomes a subclass of TransformerLens's attention; biases that ours lacks are zero and frozen.
    A native bridge does not act on edits of `hook_resid_mid` on the skip, nor (softmax) on edits of
    `hook_attn_scores`, and has no `hook_rot_q` and `hook_rot_k`; `Transformer` does and has.
    """
    tl_cfg, kind = config_to_tl(model.cfg), {"device": model.W_E.device, "dtype": model.W_E.dtype}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # its initial weights are thrown away
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from transformer_lens import HookedTransformer

            tl_cfg.seed, tl_cfg.device, tl_cfg.dtype = None, str(kind["device"]), kind["dtype"]
            tl_model = HookedTransformer(tl_cfg)
        except ImportError:
            from transformer_lens import TransformerBridge

            tl_model = TransformerBridge.boot_native(tl_cfg, **kind)
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
        ValueError: for another kind of model, a config field a `Transformer` cannot honor, a bias where ours has
            none (read-out, gated MLP), attention of a foreign class, or layers whose attention differs in kind.
    """
    try:
        from transformer_lens import HookedTransformer as Model
    except ImportError:
        from transformer_lens import TransformerBridge as Model  # type: ignore[no-redef]
    if not isinstance(tl_model, Model):
        raise ValueError(f"from_tl needs a {Model.__name__}, got {type(tl_model).__name__}; convert that first")
    cfg = config_from_tl(tl_model.cfg)
    kinds = {_attention_of(block.attn) for block in tl_model.blocks}
    if len(kinds) > 1:
        raise ValueError("attention must be of one kind in all layers, got linear and softmax; make them the same")
    weights = next(tl_model.parameters())
    model = Transformer(cfg.replace(attention=kinds.pop()), weights.device).to(weights.dtype)
    for name, bias in _lacking(model, tl_model).items():
        if bias.any():
            raise ValueError(
                f"{name} must be zero, for a Transformer has none there, got values up to {bias.abs().max():.3g}; "
                "load the model without weight processing (fold_ln=False)"
            )
    for ours, theirs in _pairs(model, tl_model):
        ours.copy_(theirs)
    return model


def _pairs(model: Transformer, tl_model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Every weight of ours with its counterpart, both writable and in one shape."""
    theirs = tl_model.state_dict()
    if _is_hooked_transformer(theirs):  # our modules show every weight under the same name, as a view
        lacking = _lacking(model, tl_model)
        for name, weight in tl_model.named_parameters():
            if name not in lacking:
                yield attrgetter(name)(model), weight
    else:  # 4.x keeps weights two-dimensional, as we do
        for name, weight in model.named_parameters():
            yield weight, theirs[_bridge_name(name)]


def _lacking(model: Transformer, tl_model: Any) -> dict[str, Tensor]:
    """The weights of theirs that ours does not have: biases."""
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
    """What a native bridge calls a parameter of ours."""
    ending = next((ending for ending in BRIDGE_NAMES if name.endswith(ending)), "")
    return name.removesuffix(ending) + BRIDGE_NAMES.get(ending, "")


def _make_linear(attention: Any) -> None:
    """Turn an attention of TransformerLens into linear attention, in place: its weights and hooks stay."""
    linear = _attention_classes()[1]
    inner = getattr(attention, "original_component", attention)
    inner.__class__ = linear
    if inner is not attention:  # the bridge's hook; in __dict__, so that it is not registered a second time
        inner.__dict__["scores_hook"] = attention.hook_attn_scores


def _attention_of(attention: Any) -> str:
    """Which kind it is, "linear" or "softmax"; any other class raises."""
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
    """TransformerLens's attention and our linear subclass; made late, for the bridge takes seconds to import."""
    try:
        from transformer_lens.components import Attention
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
            hidden = self.causal_mask[:length, :length] & self.causal
            if attention_mask is not None:
                hidden = self._combine_attention_mask(hidden, attention_mask, batch=batch)
            scores = (q @ k.transpose(-2, -1) / self.scale).masked_fill(hidden, 0.0)
            pattern = self.scores_hook(scores)
            if pattern_fn is not None:
                pattern = pattern_fn(pattern)
            # No pattern in the result: from one the bridge would fire hook_attn_scores a second time.
            return self.o((pattern @ v).transpose(1, 2).flatten(2)), None

    return NativeAttention, LinearAttention
