"""`ModelConfig`: every size and choice of a `Transformer`, under TransformerLens's field names."""

from dataclasses import dataclass, replace
from typing import Any

from plateaulens._lookup import look_up

CHOICES: dict[str, tuple[str, ...]] = {
    "attention": ("linear", "softmax"),
    "attention_dir": ("causal", "bidirectional"),
    "act_fn": ("gelu_new", "gelu", "relu", "silu"),
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
        initializer_range: standard deviation of the initial weights; residual-writing matrices get
            1 / sqrt(2 n_layers) of it.
        init_scale: one factor on all initial weights.
        seed: of the initial weights; construction leaves the global generator alone.

    Raises:
        ValueError: for sizes below one, widths that do not divide, or an unknown choice.
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
        for name in ("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_head", "d_mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, allowed in CHOICES.items():
            look_up(name, getattr(self, name), {choice: choice for choice in allowed})

    @classmethod
    def for_task(cls, task: Any, **fields: Any) -> "ModelConfig":
        """A config whose vocabulary and context fit `task`, with the layers its solution needs; fields by keyword."""
        return cls(**{"d_vocab": task.d_vocab, "n_ctx": task.n_ctx, "n_layers": getattr(task, "depth", 1), **fields})

    def but(self, **fields: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return replace(self, **fields)

    @classmethod
    def from_tl(cls, cfg: Any) -> "ModelConfig":
        """The `ModelConfig` of a `HookedTransformerConfig` (3.9) or `TransformerBridgeConfig` (4).

        Raises:
            ValueError: for any field whose value a `Transformer` cannot honour.
        """
        from plateaulens.models.convert import config_from_tl

        return config_from_tl(cfg)

    def to_tl(self) -> Any:
        """The TransformerLens config, `HookedTransformerConfig` on 3.9 and `TransformerBridgeConfig` on 4."""
        from plateaulens.models.convert import config_to_tl

        return config_to_tl(self)

    # What TransformerLens's own tools read from a config; the same for every model of ours.
    normalization_type = "LN"
    positional_embedding_type = "standard"
    attn_only = gated_mlp = parallel_attn_mlp = False
    use_attn_result = use_split_qkv_input = use_attn_in = use_hook_mlp_in = False
    n_key_value_heads = None
    device = None  # TransformerLens allocates small result tensors here: None is the default device

    @property
    def d_vocab_out(self) -> int:
        return self.d_vocab
