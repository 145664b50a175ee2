"""`Transformer`: the small model that learns, a `HookedRootModule` of TransformerLens.

Hook names, shapes and the effect of an edit are `HookedTransformer`'s; so are `cfg`, the weight
properties, `run_with_cache` and `run_with_hooks`. Weights are stored two-dimensional (one matrix
product each) and shown in TransformerLens's shapes as views. The architecture is that of
arXiv 2506.13688: pre-norm, biased projections, untied bias-free read-out.

    model = Transformer(ModelConfig.for_task(task))
    logits, cache = model.run_with_cache(batch.inputs)
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from plateaulens.models.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class KeyValueCache:
    """Keys and values of the tokens seen so far, layer by layer, for decoding."""

    def __init__(self, cfg: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (2, cfg.n_layers, batch, cfg.n_ctx, cfg.n_heads, cfg.d_head)
        self._store = like.new_empty(shape)  # uninitialised: only what was appended is read
        self._lengths = [0] * cfg.n_layers

    @property
    def length(self) -> int:
        """Tokens held by every layer."""
        return min(self._lengths)

    def append(
        self, layer: int, k: Float[Tensor, "batch pos head d_head"], v: Float[Tensor, "batch pos head d_head"]
    ) -> tuple[Tensor, Tensor]:
        """Add new keys and values of `layer`; returns all of them so far."""
        start, end = self._lengths[layer], self._lengths[layer] + k.shape[1]
        self._store[0, layer, :, start:end], self._store[1, layer, :, start:end] = k, v
        self._lengths[layer] = end
        return self._store[0, layer, :, :end], self._store[1, layer, :, :end]


class Embed(nn.Module):
    """Token embedding. `F.embedding`, because the backward of indexing is not deterministic on two threads."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class PosEmbed(nn.Module):
    """Learned absolute positions."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"], start: int) -> Float[Tensor, "batch pos d_model"]:
        return self.W_pos[start : start + tokens.shape[1]].expand(len(tokens), -1, -1)


class LayerNorm(nn.Module):
    """LayerNorm with TransformerLens's hooks; fused while nobody listens to them."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.w = nn.Parameter(torch.ones(cfg.d_model))
        self.b = nn.Parameter(torch.zeros(cfg.d_model))
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model], before w and b

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if not (listened_to(self.hook_scale) or listened_to(self.hook_normalized)):
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale) * self.w + self.b


class Attention(nn.Module):
    """Linear or softmax attention.

    Linear: A = tril(Q K^T / sqrt(d_head)), neither softmax nor normalisation, so entries may be negative
    (arXiv 2506.13688). Softmax: the same scores with -inf above the diagonal, then softmax.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer = cfg, layer
        width = cfg.n_heads * cfg.d_head
        self.q, self.k, self.v = (nn.Linear(cfg.d_model, width) for _ in range(3))
        self.o = nn.Linear(width, cfg.d_model)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], cache: KeyValueCache | None
    ) -> Float[Tensor, "batch pos d_model"]:
        heads = (self.cfg.n_heads, self.cfg.d_head)
        q = self.hook_q(self.q(x).unflatten(-1, heads))
        k = self.hook_k(self.k(x).unflatten(-1, heads))
        v = self.hook_v(self.v(x).unflatten(-1, heads))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) / sqrt(self.cfg.d_head)
        scores = self.hook_attn_scores(self.mask(scores))
        pattern = self.hook_pattern(scores if self.cfg.attention == "linear" else scores.softmax(-1))
        z = self.hook_z((pattern @ v.transpose(1, 2)).transpose(1, 2))
        return self.o(z.flatten(2))

    def mask(self, scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        """Hide later keys; the queries are the last of the keys' positions."""
        query, key = scores.shape[-2:]
        if self.cfg.attention_dir == "bidirectional" or (query == 1):
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
        return self._by_head(self.q.bias)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        return self._by_head(self.k.bias)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self._by_head(self.v.bias)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.o.bias

    def _in_shape(self, weight: Tensor) -> Tensor:
        return einops.rearrange(weight, "(h e) m -> h m e", h=self.cfg.n_heads)

    def _by_head(self, bias: Tensor) -> Tensor:
        return einops.rearrange(bias, "(h e) -> h e", h=self.cfg.n_heads)


class MLP(nn.Module):
    """Two layers with the config's activation between."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[cfg.act_fn]
        self.w_in = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.w_out = nn.Linear(cfg.d_mlp, cfg.d_model)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.w_out(self.hook_post(self.act(self.hook_pre(self.w_in(x)))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.w_in.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.w_out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return self.w_in.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return self.w_out.bias


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream after its own LayerNorm (pre-norm)."""

    hook_out_is_single_residual_stream = True  # TransformerLens's logit lens asks

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = LayerNorm(cfg), LayerNorm(cfg)
        self.attn, self.mlp = Attention(cfg, layer), MLP(cfg)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], cache: KeyValueCache | None
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(self.ln1(x), cache)))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))


class Unembed(nn.Module):
    """The read-out; `hook_in` is the residual stream after the final norm."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.w = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_out(self.w(self.hook_in(x)))

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.w.weight.T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        return self.w.weight.new_zeros(len(self.w.weight))


class Transformer(HookedRootModule):
    """A small decoder built from a `ModelConfig`; always in eval mode (it has no dropout).

    Args:
        cfg: sizes and choices; `cfg.seed` fixes the initial weights, whatever the device.
        device: where the weights live.
    """

    def __init__(self, cfg: ModelConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        with torch.random.fork_rng(devices=[]):  # torch's own initialisers draw from the global generator
            self.embed, self.pos_embed = Embed(cfg), PosEmbed(cfg)
            self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
            self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
            self.ln_final, self.unembed = LayerNorm(cfg), Unembed(cfg)
        self.setup()
        self._initialise()
        self.to(device)
        self.eval()

    @torch.no_grad()
    def _initialise(self) -> None:
        """N(0, initializer_range^2) on weights, 0 on biases; residual-writing matrices / sqrt(2 n_layers)."""
        generator = torch.Generator().manual_seed(self.cfg.seed)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 2:
                std = self.cfg.initializer_range * self.cfg.init_scale
                if name.endswith(("attn.o.weight", "mlp.w_out.weight")):
                    std /= sqrt(2 * self.cfg.n_layers)
                weight.normal_(0, std, generator=generator)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: str | None = "logits",
        past_kv_cache: KeyValueCache | None = None,
    ) -> Any:
        """Logits [batch pos d_vocab]; with `return_type="loss"` the mean next-token loss, with None nothing.

        With `past_kv_cache`, `tokens` continue the sequence that the cache holds.

        Raises:
            ValueError: for a sequence longer than `cfg.n_ctx`, or an unknown return type.
        """
        start = past_kv_cache.length if past_kv_cache is not None else 0
        if start + tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(f"{start + tokens.shape[1]} tokens do not fit n_ctx={self.cfg.n_ctx}; shorten the input")
        if return_type not in ("logits", "loss", None):
            raise ValueError(f"return_type must be 'logits', 'loss' or None, got {return_type!r}")
        x = self.hook_embed(self.embed(tokens)) + self.hook_pos_embed(self.pos_embed(tokens, start))
        for block in self.blocks:
            x = block(x, past_kv_cache)
        logits = self.unembed(self.ln_final(x))
        if return_type == "loss":
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return logits if return_type == "logits" else None

    def kv_cache(self, batch: int) -> KeyValueCache | None:
        """An empty cache for decoding `batch` sequences; None where attention looks ahead, which caches cannot."""
        return KeyValueCache(self.cfg, batch, self.W_E) if self.cfg.attention_dir == "causal" else None

    def run_with_cache(
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """As `HookedTransformer.run_with_cache`: the output and an `ActivationCache`."""
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        return out, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim) if return_cache_object else cache

    def train(self, mode: bool = True) -> "Transformer":
        """Stays in eval mode: nothing here behaves differently in training."""
        return super().train(False)

    # What TransformerLens's ActivationCache asks of its model.

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """The read-out direction of each token."""
        return self.W_U.T[tokens]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the biases written to the residual stream before `layer`."""
        total = self.W_E.new_zeros(self.cfg.d_model)
        b_O, b_out = self.b_O, self.b_out
        total = total + b_O[: layer + mlp_input].sum(0)
        return total + b_out[:layer].sum(0) if include_mlp_biases else total

    # Weights in TransformerLens's shapes, stacked over layers.

    W_E = property(lambda self: self.embed.W_E)
    W_pos = property(lambda self: self.pos_embed.W_pos)
    W_U = property(lambda self: self.unembed.W_U)
    b_U = property(lambda self: self.unembed.b_U)
    W_Q = property(lambda self: self._stack("attn", "W_Q"))
    W_K = property(lambda self: self._stack("attn", "W_K"))
    W_V = property(lambda self: self._stack("attn", "W_V"))
    W_O = property(lambda self: self._stack("attn", "W_O"))
    b_Q = property(lambda self: self._stack("attn", "b_Q"))
    b_K = property(lambda self: self._stack("attn", "b_K"))
    b_V = property(lambda self: self._stack("attn", "b_V"))
    b_O = property(lambda self: self._stack("attn", "b_O"))
    W_in = property(lambda self: self._stack("mlp", "W_in"))
    W_out = property(lambda self: self._stack("mlp", "W_out"))
    b_in = property(lambda self: self._stack("mlp", "b_in"))
    b_out = property(lambda self: self._stack("mlp", "b_out"))

    def _stack(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])


def listened_to(point: HookPoint) -> bool:
    """Whether any forward or backward hook sits on `point`."""
    return bool(point.fwd_hooks or point.bwd_hooks)
