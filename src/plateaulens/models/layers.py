"""Layers of a `Transformer`, with the hooks of `HookedTransformer`.

Weights are stored as two-dimensional matrices; properties like `W_Q` are views in TransformerLens's shapes.
"""

from collections.abc import Callable
from math import sqrt

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from plateaulens.models.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class KeyValueCache:
    """Keys and values of earlier tokens for each layer, for decoding."""

    def __init__(self, cfg: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (2, cfg.n_layers, batch, cfg.n_ctx, cfg.n_heads, cfg.d_head)
        self._store = like.new_empty(shape)  # only appended entries are read
        self._lengths = [0] * cfg.n_layers

    @property
    def length(self) -> int:
        """Number of tokens that every layer has stored."""
        return min(self._lengths)

    def length_of(self, layer: int) -> int:
        """Number of tokens that one layer has stored."""
        return self._lengths[layer]

    def append(
        self, layer: int, k: Float[Tensor, "batch pos head d_head"], v: Float[Tensor, "batch pos head d_head"]
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of `layer`; returns all stored keys and values of it."""
        start, end = self._lengths[layer], self._lengths[layer] + k.shape[1]
        self._store[0, layer, :, start:end], self._store[1, layer, :, start:end] = k, v
        self._lengths[layer] = end
        return self._store[0, layer, :, :end], self._store[1, layer, :, :end]


class Embed(nn.Module):
    """Token embedding, by `F.embedding`: the backward pass of indexing is not deterministic on two threads."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))
        self.padding_idx = cfg.padding_idx

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E, self.padding_idx)


class PosEmbed(nn.Module):
    """Learned absolute position embedding."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"], start: int) -> Float[Tensor, "batch pos d_model"]:
        return self.W_pos[start : start + tokens.shape[1]].expand(len(tokens), -1, -1)


class Norm(nn.Module):
    """LayerNorm or RMSNorm with TransformerLens's hooks; torch's fused function if no hook is attached."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.eps, self.rms = cfg.eps, cfg.normalization_type == "RMS"
        self.w = nn.Parameter(torch.ones(cfg.d_model))
        if not self.rms:
            self.b = nn.Parameter(torch.zeros(cfg.d_model))
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model], before w and b

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if not (is_hooked(self.hook_scale) or is_hooked(self.hook_normalized)):
            if self.rms:
                return F.rms_norm(x, self.w.shape, self.w, self.eps)
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        if not self.rms:
            x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        x = self.hook_normalized(x / scale) * self.w
        return x if self.rms else x + self.b


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) of whole heads, in pairs of adjacent entries.

    Pairs are rotated as complex numbers, which is faster on a CPU than real arithmetic.
    """

    rotations: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        frequencies = cfg.rotary_base ** -(torch.arange(0, cfg.d_head, 2, dtype=torch.float64) / cfg.d_head)
        angles = torch.outer(torch.arange(cfg.n_ctx), frequencies)[:, None]
        rotations = torch.stack([angles.cos(), angles.sin()], -1).float()  # [pos, 1, pair, 2]
        # Stored as real numbers, because `.to(dtype)` drops imaginary parts.
        self.register_buffer("rotations", rotations, persistent=False)

    def forward(self, x: Float[Tensor, "batch pos head d_head"], start: int) -> Float[Tensor, "batch pos head d_head"]:
        pairs, rotations = x.contiguous().unflatten(-1, (-1, 2)), self.rotations[start : start + x.shape[1]]
        dtype = torch.promote_types(x.dtype, torch.float32)  # there is no complex bfloat16
        rotated = torch.view_as_complex(pairs.to(dtype)) * torch.view_as_complex(rotations.to(dtype))
        return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Linear or softmax attention.

    Linear: A = tril(Q K^T / sqrt(d_head)), without softmax or normalization, so entries may be negative
    (arXiv 2506.13688). Softmax: the same scores with -inf above the diagonal, then softmax. Bidirectional attention
    has no mask.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer = cfg, layer
        width = cfg.n_heads * cfg.d_head
        self.q, self.k, self.v = (nn.Linear(cfg.d_model, width, cfg.biases) for _ in range(3))
        self.o = nn.Linear(width, cfg.d_model, cfg.biases)
        self.rotary = Rotary(cfg) if cfg.positional_embedding_type == "rotary" else None
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()  # [batch, pos, head, d_head]
        if self.rotary is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], cache: KeyValueCache | None
    ) -> Float[Tensor, "batch pos d_model"]:
        heads = (self.cfg.n_heads, self.cfg.d_head)
        q = self.hook_q(self.q(x).unflatten(-1, heads))
        k = self.hook_k(self.k(x).unflatten(-1, heads))
        v = self.hook_v(self.v(x).unflatten(-1, heads))
        if self.rotary is not None:
            start = 0 if cache is None else cache.length_of(self.layer)
            q, k = self.hook_rot_q(self.rotary(q, start)), self.hook_rot_k(self.rotary(k, start))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) / sqrt(self.cfg.d_head)
        scores = self.hook_attn_scores(self.mask(scores))
        pattern = self.hook_pattern(scores if self.cfg.attention == "linear" else scores.softmax(-1))
        z = self.hook_z((pattern @ v.transpose(1, 2)).transpose(1, 2))
        return self.o(z.flatten(2))

    def mask(self, scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        """Mask later keys; the queries are at the last of the keys' positions."""
        query, key = scores.shape[-2:]
        if self.cfg.attention_dir == "bidirectional" or query == 1:
            return scores
        if self.cfg.attention == "linear":
            return scores.tril(key - query)
        later = torch.ones(query, key, dtype=torch.bool, device=scores.device).triu(1 + key - query)
        return scores.masked_fill(later, float("-inf"))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._in_shape(self.q.weight)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        return self._in_shape(self.k.weight)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        return self._in_shape(self.v.weight)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return einops.rearrange(self.o.weight, "m (h e) -> h e m", h=self.cfg.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._by_head(bias_of(self.q))

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        return self._by_head(bias_of(self.k))

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self._by_head(bias_of(self.v))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return bias_of(self.o)

    def _in_shape(self, weight: Tensor) -> Tensor:
        return einops.rearrange(weight, "(h e) m -> h m e", h=self.cfg.n_heads)

    def _by_head(self, bias: Tensor) -> Tensor:
        return einops.rearrange(bias, "(h e) -> h e", h=self.cfg.n_heads)


class MLP(nn.Module):
    """w_out(act(w_in(x))), or if gated w_out(act(w_gate(x)) * w_in(x)) (arXiv 2002.05202), without biases."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.act, biases = ACTIVATIONS[cfg.act_fn], cfg.biases and not cfg.gated_mlp
        self.w_in = nn.Linear(cfg.d_model, cfg.d_mlp, biases)
        self.w_out = nn.Linear(cfg.d_mlp, cfg.d_model, biases)
        self.w_gate = nn.Linear(cfg.d_model, cfg.d_mlp, False) if cfg.gated_mlp else None
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()  # [batch, pos, d_mlp]
        if self.w_gate is not None:
            self.hook_pre_linear = HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.w_gate is None:
            return self.w_out(self.hook_post(self.act(self.hook_pre(self.w_in(x)))))
        gate = self.act(self.hook_pre(self.w_gate(x)))
        return self.w_out(self.hook_post(gate * self.hook_pre_linear(self.w_in(x))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.w_in.weight.T

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:
        return None if self.w_gate is None else self.w_gate.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.w_out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return bias_of(self.w_in)

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return bias_of(self.w_out)


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream after its own norm (pre-norm)."""

    hook_out_is_single_residual_stream = True  # read by TransformerLens's logit lens

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = Norm(cfg), Norm(cfg)
        self.attn, self.mlp = Attention(cfg, layer), MLP(cfg)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], cache: KeyValueCache | None
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(self.ln1(x), cache)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))


class PostNormBlock(Block):
    """Attention, then MLP, each added to the residual stream, which is normalized after it (post-norm, BERT).

    `hook_resid_mid` and `hook_resid_post` are before the norm, as in TransformerLens's `BertBlock`.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.hook_normalized_resid_mid, self.hook_normalized_resid_post = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], cache: KeyValueCache | None
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(x, cache)))
        x = self.hook_normalized_resid_mid(self.ln1(x))
        x = self.hook_resid_post(x + self.hook_mlp_out(self.mlp(x)))
        return self.hook_normalized_resid_post(self.ln2(x))


class Unembed(nn.Module):
    """The read-out; `hook_in` is the residual stream after the last norm."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.w = nn.Linear(cfg.d_model, cfg.d_vocab_out, bias=cfg.readout == "scalar")
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        return self.hook_out(self.w(self.hook_in(x)))

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        return self.w.weight.T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"]:
        return bias_of(self.w)


def bias_of(linear: nn.Linear) -> Float[Tensor, " out"]:
    """The bias of a linear map, zeros if it has none, as TransformerLens's tools expect."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def is_hooked(point: HookPoint) -> bool:
    """Whether a forward or backward hook is attached to `point`."""
    return bool(point.fwd_hooks or point.bwd_hooks)
