"""`ModelConfig`: every size and choice of a `Transformer`, under TransformerLens's field names."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from plateaulens._registry import look_up

CHOICES: dict[str, tuple[str, ...]] = {
    "attention": ("linear", "softmax"),
    "attention_dir": ("causal", "bidirectional"),
    "act_fn": ("gelu_new", "gelu", "relu", "silu"),
    "normalization_type": ("LN", "RMS"),
    "positional_embedding_type": ("standard", "rotary"),
    "norm_position": ("pre", "post"),
    "readout": ("tokens", "scalar"),
    "init": ("gpt2", "bert", "pytorch"),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and choices of a `Transformer`; frozen, goes to JSON and comes back equal.

    Field names are those of TransformerLens's `HookedTransformerConfig` wherever that has the field.

    Attributes:
        attention: "linear" (scores are the pattern, as in arXiv 2506.13688) or "softmax".
        d_head: -1, TransformerLens's "derive it", is d_model / n_heads.
        d_mlp: -1 is 4 d_model.
        act_fn: "gelu_new" (tanh approximation), "gelu", "relu" or "silu".
        gated_mlp: act(W_gate x) * (W_in x) instead of act(W_in x); with "silu", SwiGLU.
        normalization_type: "LN" or "RMS", with a learned scale.
        positional_embedding_type: "standard" (learned, absolute) or "rotary" (whole heads, adjacent pairs).
        rotary_base: the slowest pair turns by about 1 / rotary_base a position.
        norm_position: "pre", or "post": the embedding is normalized, and the sum after attention and after the MLP,
            and there is no final norm (BERT). The stream of "post" is no sum of what is written to it:
            TransformerLens's decompositions of it (`decompose_resid` and the like) do not hold there.
        biases: of the projections, and of an MLP that is not gated; a read-out of tokens has none.
        readout: "tokens" (logits), or "scalar": one number a position, with a bias.
        padding_idx: a token whose embedding is zero and stays so, as torch and BERT have it; None for none.
        init: "gpt2", "bert" (the same for all matrices but a scalar read-out, which is torch's), or "pytorch", whose
            defaults are N(0, 1) for embeddings and U(+-1/sqrt(inputs)) for linear maps.
        initializer_range: standard deviation of the initial weights of "gpt2" and "bert"; of "gpt2",
            residual-writing matrices get 1 / sqrt(2 n_layers) of it.
        init_scale: one factor on all initial weights.
        seed: of the initial weights; construction leaves the global generator alone.

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
    attention: str = "linear"
    attention_dir: str = "causal"
    act_fn: str = "gelu_new"
    gated_mlp: bool = False
    normalization_type: str = "LN"
    positional_embedding_type: str = "standard"
    rotary_base: int = 10_000
    norm_position: str = "pre"
    biases: bool = True
    readout: str = "tokens"
    padding_idx: int | None = None
    init: str = "gpt2"
    eps: float = 1e-5
    initializer_range: float = 0.02
    init_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.d_head == -1:
            if self.n_heads < 1 or self.d_model % self.n_heads:
                raise ValueError(
                    f"d_model={self.d_model} does not divide into n_heads={self.n_heads}; give d_head or other sizes"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.d_mlp == -1:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        for name in ("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp", "rotary_base"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, allowed in CHOICES.items():
            look_up(name, getattr(self, name), {choice: choice for choice in allowed})
        if self.positional_embedding_type == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions turn pairs: d_head must be even, got {self.d_head}")
        if self.padding_idx is not None and not 0 <= self.padding_idx < self.d_vocab:
            raise ValueError(f"padding_idx is a token, 0..{self.d_vocab - 1}, got {self.padding_idx}")

    @classmethod
    def for_task(cls, task: Any, **fields: Any) -> "ModelConfig":
        """A config whose vocabulary and context fit `task`, with the layers its solution needs; fields by keyword."""
        return cls(**{"d_vocab": task.d_vocab, "n_ctx": task.n_ctx, "n_layers": getattr(task, "depth", 1), **fields})

    def replace(self, **fields: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return replace(self, **fields)

    @classmethod
    def from_tl(cls, cfg: Any) -> "ModelConfig":
        """The `ModelConfig` of a `HookedTransformerConfig` (3.9) or `TransformerBridgeConfig` (4).

        Raises:
            ValueError: for any field whose value a `Transformer` cannot honor.
        """
        from plateaulens.models.conversion import config_from_tl

        return config_from_tl(cfg)

    def to_tl(self) -> Any:
        """The TransformerLens config, `HookedTransformerConfig` on 3.9 and `TransformerBridgeConfig` on 4."""
        from plateaulens.models.conversion import config_to_tl

        return config_to_tl(self)

    # What TransformerLens's own tools read from a config; the same for every model of ours.
    attn_only = parallel_attn_mlp = False
    rotary_adjacent_pairs = True
    use_attn_result = use_split_qkv_input = use_attn_in = use_hook_mlp_in = False
    n_key_value_heads = None
    device = None  # TransformerLens allocates small result tensors here: None is the default device

    @property
    def rotary_dim(self) -> int | None:
        return self.d_head if self.positional_embedding_type == "rotary" else None

    @property
    def d_vocab_out(self) -> int:
        return self.d_vocab if self.readout == "tokens" else 1


def transformer_pp(d_model: int = 64, n_layers: int = 4) -> dict[str, Any]:
    """The fields of "Transformer++" (arXiv 2505.03997): four heads, RMSNorm, rotary positions, SwiGLU, no biases.

        ModelConfig.for_task(task, **transformer_pp(d_model=64, n_layers=3))

    The MLP is as wide as 8 d_model / 3, rounded down, and up to an even number.
    """
    width = 8 * d_model // 3
    kind = {"attention": "softmax", "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"}
    more = {"positional_embedding_type": "rotary", "biases": False, "init": "pytorch"}
    return {"d_model": d_model, "n_layers": n_layers, "n_heads": 4, "d_mlp": width + width % 2, **kind, **more}


def bert(d_model: int = 768, n_layers: int = 4, n_heads: int = 8) -> dict[str, Any]:
    """The fields of the bidirectional model of arXiv 2410.22244: BERT, one number a position; MASK (token 0) is zero.

        ModelConfig.for_task(task, **bert(d_model=64, n_layers=2, n_heads=4))

    Initial weights are as large beside their inputs as those of width 768: N(0, 0.02^2 * 768 / d_model).
    """
    kind = {"attention": "softmax", "attention_dir": "bidirectional", "act_fn": "gelu", "norm_position": "post"}
    more = {"eps": 1e-12, "readout": "scalar", "padding_idx": 0, "init": "bert"}
    size = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
    return {**size, **kind, **more, "initializer_range": 0.02 * sqrt(768 / d_model)}
