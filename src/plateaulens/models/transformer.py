"""`Transformer`: a small transformer to train, a `HookedRootModule` of TransformerLens.

Hook names, shapes of activations and effects of edits are the same as in `HookedTransformer`, and so are `cfg`, the
weight properties, `run_with_cache` and `run_with_hooks`. The default architecture is that of arXiv 2506.13688:
pre-norm, projections with biases, and an untied read-out without a bias.

    model = Transformer(ModelConfig.for_task(task))
    logits, cache = model.run_with_cache(batch.inputs)
"""

from math import sqrt
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from plateaulens.models.config import ModelConfig
from plateaulens.models.layers import Block, Embed, KeyValueCache, Norm, PosEmbed, PostNormBlock, Unembed


class Transformer(HookedRootModule):
    """A small decoder, or bidirectional encoder, defined by a `ModelConfig`; always in eval mode (it has no dropout).

    Args:
        cfg: Sizes and architecture; `cfg.seed` determines the initial weights on every device.
        device: Device of the weights; None for torch's default.
    """

    def __init__(self, cfg: ModelConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        with torch.random.fork_rng(devices=[]):  # torch's initializers use the global generator
            self.embed, self.hook_embed = Embed(cfg), HookPoint()
            if cfg.positional_embedding_type == "standard":
                self.pos_embed, self.hook_pos_embed = PosEmbed(cfg), HookPoint()
            post = cfg.norm_position == "post"
            self.ln_embed = Norm(cfg) if post else nn.Identity()
            kind = PostNormBlock if post else Block
            self.blocks = nn.ModuleList(kind(cfg, layer) for layer in range(cfg.n_layers))
            self.ln_final = nn.Identity() if post else Norm(cfg)
            self.unembed = Unembed(cfg)
        self.setup()
        self._initialize()
        self.to(device)
        self.eval()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draw the initial weights according to `cfg.init`, from a generator seeded by `cfg.seed`."""
        generator, scale = torch.Generator().manual_seed(self.cfg.seed), self.cfg.init_scale
        for name, weight in self.named_parameters():
            torch_readout = name.startswith("unembed") and self.cfg.init == "bert" and self.cfg.readout == "scalar"
            if self.cfg.init in ("gpt2", "bert") and not torch_readout:
                if name.endswith("bias"):
                    weight.zero_()
                elif weight.ndim == 2:
                    std = self.cfg.initializer_range * scale
                    if self.cfg.init == "gpt2" and name.endswith(("attn.o.weight", "mlp.w_out.weight")):
                        std /= sqrt(2 * self.cfg.n_layers)
                    weight.normal_(0, std, generator=generator)
            elif name.startswith(("embed", "pos_embed")):
                weight.normal_(0, scale, generator=generator)
            elif name.endswith(("weight", "bias")):  # of a linear map; the parameters of norms are named w and b
                inputs = self.get_submodule(name.rpartition(".")[0]).in_features
                bound = scale / sqrt(inputs)  # type: ignore[arg-type]
                weight.uniform_(-bound, bound, generator=generator)
        if self.cfg.padding_idx is not None:
            self.embed.W_E[self.cfg.padding_idx] = 0

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: Literal["logits", "loss"] | None = "logits",
        past_kv_cache: KeyValueCache | None = None,
    ) -> Any:
        """The outputs of the model.

        Args:
            tokens: Input tokens.
            return_type: "logits"; "loss", the mean next-token loss; or None to return nothing.
            past_kv_cache: Cache of earlier tokens, which `tokens` continue and are added to.

        Returns:
            Logits [batch pos d_vocab], or the outputs [batch pos] of a scalar read-out; a number for "loss".

        Raises:
            ValueError: for a sequence longer than `cfg.n_ctx`, an unknown return type, or the loss of a scalar
                read-out.
        """
        start = past_kv_cache.length if past_kv_cache is not None else 0
        if start + tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(
                f"{start + tokens.shape[1]} tokens are more than n_ctx={self.cfg.n_ctx}; shorten the input"
            )
        if return_type not in ("logits", "loss", None):
            raise ValueError(f"return_type must be 'logits', 'loss' or None, got {return_type!r}")
        if return_type == "loss" and self.cfg.readout == "scalar":
            raise ValueError("a scalar read-out has no next-token loss; use task.loss(model(batch.inputs), batch)")
        x = self.hook_embed(self.embed(tokens))
        if self.cfg.positional_embedding_type == "standard":
            x = x + self.hook_pos_embed(self.pos_embed(tokens, start))
        x = self.ln_embed(x)
        for block in self.blocks:
            x = block(x, past_kv_cache)
        logits = self.unembed(self.ln_final(x))
        if self.cfg.readout == "scalar":
            logits = logits.squeeze(-1)
        if return_type == "loss":
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return logits if return_type == "logits" else None

    def kv_cache(self, batch: int) -> KeyValueCache | None:
        """An empty cache for decoding `batch` sequences; None for bidirectional attention, which cannot use one."""
        return KeyValueCache(self.cfg, batch, self.W_E) if self.cfg.attention_dir == "causal" else None

    def run_with_cache(
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """The output and an `ActivationCache`, as `HookedTransformer.run_with_cache`."""
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        return out, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim) if return_cache_object else cache

    def train(self, mode: bool = True) -> "Transformer":
        """Returns the model, which stays in eval mode: no layer behaves differently in training."""
        return super().train(False)

    # Used by TransformerLens's ActivationCache.

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """The read-out direction of each token."""
        return self.W_U.T[tokens]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the biases that are added to the residual stream before `layer`.

        Raises:
            ValueError: for `norm_position="post"`, where the residual stream is not such a sum.
        """
        if self.cfg.norm_position == "post":
            raise ValueError(
                "norm_position='post' normalizes the residual stream after every addition, so that it is not a sum of "
                "parts; decompose a model with norm_position='pre'"
            )
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
    W_gate = property(lambda self: self._stack("mlp", "W_gate") if self.cfg.gated_mlp else None)
    b_in = property(lambda self: self._stack("mlp", "b_in"))
    b_out = property(lambda self: self._stack("mlp", "b_out"))

    def _stack(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])
