"""`ModelConfig`: sizes and architecture of a `Transformer`, under TransformerLens's field names; presets."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Literal

from plateaulens._registry import check_choices


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and architecture of a `Transformer`; frozen, and equal after a round trip through JSON.

    Field names are those of TransformerLens's `HookedTransformerConfig` where it has the field.

    Attributes:
        d_vocab: Number of tokens in the vocabulary.
        n_ctx: Largest number of positions.
        d_model: Width of the residual stream.
        n_layers: Number of layers.
        n_heads: Number of attention heads in each layer.
        d_head: Width of a head; -1 for d_model / n_heads.
        d_mlp: Width of the MLP; -1 for 4 d_model.
        attention: "linear" (the scores are the pattern, as in arXiv 2506.13688) or "softmax".
        attention_dir: "causal", or "bidirectional": every position attends to all positions.
        act_fn: Activation function: "gelu_new" (tanh approximation), "gelu", "relu" or "silu".
        gated_mlp: Whether the MLP computes act(W_gate x) * (W_in x) instead of act(W_in x); with "silu", SwiGLU.
        normalization_type: "LN" (LayerNorm) or "RMS" (RMSNorm), with a learned scale.
        positional_embedding_type: "standard" (learned, absolute) or "rotary" (whole heads, adjacent pairs).
        rotary_base: Base of the rotary angles; the slowest pair rotates by about 1 / rotary_base per position.
        norm_position: "pre", or "post" as in BERT: the embedding and the sums after attention and after the MLP are
            normalized, and there is no final norm. The residual stream is then not a sum of what is written to it, so
            TransformerLens's decompositions (`decompose_resid` and the like) do not apply.
        biases: Whether the attention projections, and an MLP that is not gated, have biases.
        readout: "tokens" (logits, without a bias), or "scalar" (one number per position, with a bias).
        padding_idx: Token whose embedding is zero and is not trained, as in torch and BERT; None for no such token.
        init: Initial weights: "gpt2"; "bert" (the same standard deviation for all matrices, torch's default for a
            scalar read-out); or "pytorch", N(0, 1) for embeddings and U(+-1/sqrt(inputs)) for linear maps.
        eps: Term added to the variance in norms.
        initializer_range: Standard deviation of the initial weights for "gpt2" and "bert"; for "gpt2", matrices that
            write to the residual stream have 1 / sqrt(2 n_layers) of it.
        init_scale: Factor on all initial weights.
        seed: Seed of the initial weights; the global random generator is not used.

    Raises:
        ValueError: for sizes below one, widths that do not divide, rotary heads of odd width, or an unknown choice.
    """

    d_vocab: int
    n_ctx: int
    d_model: int = 256
    n_layers: int = 1
    n_heads: int = 1
    d_head: int = -1
    d_mlp: int = -1
    attention: Literal["linear", "softmax"] = "linear"
    attention_dir: Literal["causal", "bidirectional"] = "causal"
    act_fn: Literal["gelu_new", "gelu", "relu", "silu"] = "gelu_new"
    gated_mlp: bool = False
    normalization_type: Literal["LN", "RMS"] = "LN"
    positional_embedding_type: Literal["standard", "rotary"] = "standard"
    rotary_base: int = 10_000
    norm_position: Literal["pre", "post"] = "pre"
    biases: bool = True
    readout: Literal["tokens", "scalar"] = "tokens"
    padding_idx: int | None = None
    init: Literal["gpt2", "bert", "pytorch"] = "gpt2"
    eps: float = 1e-5
    initializer_range: float = 0.02
    init_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.d_head == -1:
            if self.n_heads < 1 or self.d_model % self.n_heads:
                raise ValueError(
                    f"d_model={self.d_model} is not divisible by n_heads={self.n_heads}; give d_head or other sizes"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.d_mlp == -1:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        for name in ("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp", "rotary_base"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_choices(self)
        if self.positional_embedding_type == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions rotate pairs, so d_head must be even, got {self.d_head}")
        if self.padding_idx is not None and not 0 <= self.padding_idx < self.d_vocab:
            raise ValueError(f"padding_idx must be a token, 0..{self.d_vocab - 1}, got {self.padding_idx}")

    @classmethod
    def for_task(cls, task: Any, **fields: Any) -> "ModelConfig":
        """A config with the vocabulary and context of `task`, and as many layers as its solution needs.

        Args:
            task: A `Task`, or an object with `d_vocab`, `n_ctx` and optionally `depth` (number of layers).
            fields: Other fields of the config, which take precedence.
        """
        return cls(**{"d_vocab": task.d_vocab, "n_ctx": task.n_ctx, "n_layers": getattr(task, "depth", 1), **fields})

    def replace(self, **fields: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return replace(self, **fields)

    # Fields that TransformerLens's tools read from a config, the same for every `Transformer`.
    attn_only = parallel_attn_mlp = False
    rotary_adjacent_pairs = True
    use_attn_result = use_split_qkv_input = use_attn_in = use_hook_mlp_in = False
    n_key_value_heads = None
    device = None  # where TransformerLens allocates small result tensors; None for the default device

    @property
    def rotary_dim(self) -> int | None:
        """Width of the rotated part of a head, or None without rotary positions."""
        return self.d_head if self.positional_embedding_type == "rotary" else None

    @property
    def d_vocab_out(self) -> int:
        """Number of outputs per position."""
        return self.d_vocab if self.readout == "tokens" else 1


def transformer_pp(d_model: int = 64, n_layers: int = 4) -> dict[str, Any]:
    """Config fields of "Transformer++" (arXiv 2505.03997): four heads, RMSNorm, rotary positions, SwiGLU, no biases.

        ModelConfig.for_task(task, **transformer_pp(d_model=64, n_layers=3))

    The width of the MLP is floor(8 d_model / 3), plus one if that is odd.
    """
    width = 8 * d_model // 3
    kind = {"attention": "softmax", "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"}
    more = {"positional_embedding_type": "rotary", "biases": False, "init": "pytorch"}
    return {"d_model": d_model, "n_layers": n_layers, "n_heads": 4, "d_mlp": width + width % 2, **kind, **more}


def bert(d_model: int = 768, n_layers: int = 4, n_heads: int = 8) -> dict[str, Any]:
    """Config fields of the bidirectional model of arXiv 2410.22244: BERT with one number as output per position.

        ModelConfig.for_task(task, **bert(d_model=64, n_layers=2, n_heads=4))

    The embedding of MASK (token 0) is zero. Initial weights are N(0, 0.02^2 * 768 / d_model), so that outputs of the
    matrices are as large as those of a BERT of width 768.
    """
    kind = {"attention": "softmax", "attention_dir": "bidirectional", "act_fn": "gelu", "norm_position": "post"}
    more = {"eps": 1e-12, "readout": "scalar", "padding_idx": 0, "init": "bert"}
    size = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
    return {**size, **kind, **more, "initializer_range": 0.02 * sqrt(768 / d_model)}
