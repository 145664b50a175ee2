"""RMSNorm, SwiGLU, rotary positions, no biases: against plain Llama blocks, and TransformerLens's own model."""

import pytest
import torch
import torch.nn.functional as F

import plateaulens as pl
from plateaulens.models.config import transformer_pp
from plateaulens.models.parameter_groups import parameters_of

TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
TOKENS = TASK.sample(3, seed=0).inputs


def make(**fields):
    return pl.Transformer(pl.ModelConfig.for_task(TASK, **{**transformer_pp(d_model=32, n_layers=2), **fields}))


def turned(x, base=10_000):
    """Adjacent pairs as complex numbers, turned by position / base^(2i/d): the definition."""
    batch, pos, head, d = x.shape
    angle = torch.arange(pos)[:, None] / base ** (torch.arange(0, d, 2) / d)
    pairs = torch.view_as_complex(x.reshape(batch, pos, head, d // 2, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(()), angle)[:, None]).flatten(-2)


def rms(x, w, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w


@torch.no_grad()
def by_hand(model, tokens):
    """Logits and the residual stream after each block, from the paper's description alone."""
    state, heads, stream = model.state_dict(), model.cfg.n_heads, []
    x = state["embed.W_E"][tokens]
    for layer in range(model.cfg.n_layers):
        w = {name.removeprefix(f"blocks.{layer}."): v for name, v in state.items() if f"blocks.{layer}." in name}
        y = rms(x, w["ln1.w"])
        q, k, v = (F.linear(y, w[f"attn.{part}.weight"]).unflatten(-1, (heads, -1)) for part in "qkv")
        q, k, v = (part.transpose(1, 2) for part in (turned(q), turned(k), v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.linear(z, w["attn.o.weight"])
        y = rms(x, w["ln2.w"])
        gate = F.silu(F.linear(y, w["mlp.w_gate.weight"])) * F.linear(y, w["mlp.w_in.weight"])
        x = x + F.linear(gate, w["mlp.w_out.weight"])
        stream.append(x)
    return F.linear(rms(x, state["ln_final.w"]), state["unembed.w.weight"]), stream


def test_transformer_pp_equals_a_stack_of_llama_blocks():
    model = make()
    with torch.no_grad():
        for norm in (model.ln_final, *(n for block in model.blocks for n in (block.ln1, block.ln2))):
            norm.w.uniform_(0.5, 1.5)
    logits, cache = model.run_with_cache(TOKENS)  # unfused: every hook is listened to
    expected, stream = by_hand(model, TOKENS)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-5, atol=1e-5)  # fused
    for layer, x in enumerate(stream):
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_resid_post"], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d, layers", [(8, 4), (32, 2), (64, 3)])
def test_parameter_count_equals_the_formula(d, layers):
    model = pl.Transformer(pl.ModelConfig.for_task(TASK, **transformer_pp(d, layers)))
    width, vocab = model.cfg.d_mlp, TASK.d_vocab
    count = sum(p.numel() for p in model.parameters())
    assert count == layers * (4 * d * d + 3 * d * width) + 2 * vocab * d + (2 * layers + 1) * d
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"W_E", "weight", "w"}


def test_mlp_widths_equal_those_of_the_paper():
    widths = {8: 22, 16: 42, 32: 86, 64: 170, 128: 342, 256: 682, 512: 1366}
    assert {d: transformer_pp(d)["d_mlp"] for d in widths} == widths


def test_initial_weights_have_pytorchs_distributions():
    model = make(d_model=256, d_mlp=100, n_layers=1)
    assert abs(float(model.W_E.detach().std()) - 1) < 0.05
    block = model.blocks[0]
    for linear, inputs in ((block.attn.q, 256), (block.attn.o, 256), (block.mlp.w_out, 100), (model.unembed.w, 256)):
        bound = inputs**-0.5
        assert 0.98 * bound < float(linear.weight.detach().abs().max()) <= bound
        assert abs(float(linear.weight.detach().std()) - bound / 3**0.5) < 0.03 * bound
    assert (model.ln_final.w == 1).all()
    before = torch.get_rng_state()
    assert torch.equal(make(seed=3).W_Q, make(seed=3).W_Q) and not torch.equal(make(seed=3).W_Q, make(seed=4).W_Q)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_cached_decoding_equals_full_passes(attention):
    model = make(attention=attention)
    batch = TASK.sample(3, seed=0)
    tokens = batch.tokens[:, : batch.prompt_len]
    for _ in range(TASK.n_out):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(pl.greedy_decode(model, batch), tokens[:, batch.prompt_len :])
    cache = model.kv_cache(3)
    rows = [model(TOKENS[:, i : i + 1], past_kv_cache=cache) for i in range(TOKENS.shape[1])]
    torch.testing.assert_close(torch.cat(rows, 1), model(TOKENS), rtol=1e-4, atol=1e-5)


OPTIONS = {
    "transformer++": {},
    "linear": {"attention": "linear"},
    "rms only": {"gated_mlp": False, "positional_embedding_type": "standard", "biases": True, "init": "gpt2"},
    "rotary with biases": {"normalization_type": "LN", "biases": True, "gated_mlp": False},
    "gated with biases elsewhere": {"biases": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_conversion_both_ways_keeps_the_logits(name):
    model = make(**OPTIONS[name])
    there = pl.to_tl(model)
    back = pl.from_tl(there)
    logits, cache = model.run_with_cache(TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(there(TOKENS), logits, rtol=1e-5, atol=1e-5)
    theirs = there.run_with_cache(TOKENS)[1]
    for hook in ("hook_resid_post", "attn.hook_pattern", "mlp.hook_post", "attn.hook_q", "mlp.hook_pre"):
        for layer in range(2):
            site = f"blocks.{layer}.{hook}"
            torch.testing.assert_close(theirs[site], cache[site], rtol=1e-5, atol=1e-5)
    assert back.cfg == model.cfg.replace(init=back.cfg.init) and torch.equal(back(TOKENS), model(TOKENS))


def test_nonzero_bias_that_transformer_lacks_raises():
    there = pl.to_tl(make())
    with torch.no_grad():
        next(p for n, p in there.named_parameters() if n.endswith(("b_Q", "q._original_component.bias"))).add_(1)
    with pytest.raises(ValueError, match="must be zero"):
        pl.from_tl(there)


def test_hooks_and_parameter_groups_of_gated_and_rotary_models():
    model = make()
    plain = model(TOKENS)
    for site in ("attn.hook_rot_q", "attn.hook_rot_k", "mlp.hook_pre_linear", "ln1.hook_scale", "ln2.hook_normalized"):
        with pl.intervene(model, pl.Ablate(f"blocks.0.{site}", "mean")):
            assert not torch.allclose(model(TOKENS), plain, atol=1e-4), site
    assert "blocks.0.mlp.w_gate.weight" in parameters_of(model, "mlp")
    assert not hasattr(model, "W_pos") and model.b_Q.eq(0).all() and model.accumulated_bias(1).shape == (32,)


def test_post_norm_stream_raises_on_decomposition():
    model = make(norm_position="post")
    with pytest.raises(ValueError, match="not a sum of parts"):
        model.run_with_cache(TOKENS)[1].get_full_resid_decomposition(-1)
    other = make(norm_position="post", seed=1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    grafted = pl.graft(model, other, "norms").state_dict()
    for name, weight in model.state_dict().items():
        is_norm = name.startswith("ln_embed") or ".ln1." in name or ".ln2." in name
        assert torch.equal(grafted[name], (other.state_dict()[name] if is_norm else weight)), name


@pytest.mark.usefixtures("annotations_unchecked")
def test_missing_config_fields_have_defaults_and_bad_ones_raise():
    old = {"d_vocab": 6, "n_ctx": 9, "d_model": 16}
    assert pl.ModelConfig(**old).normalization_type == "LN" and not pl.ModelConfig(**old).gated_mlp
    for fields, message in [
        ({"normalization_type": "rms"}, "normalization_type"),
        ({"positional_embedding_type": "rotary", "d_head": 3}, "d_head must be even"),
        ({"init": "xavier"}, "init"),
    ]:
        with pytest.raises(ValueError, match=message):
            pl.ModelConfig(**old, **fields)
