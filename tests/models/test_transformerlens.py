"""`Transformer` as TransformerLens sees it, and conversion to and from TransformerLens's own models; on 3.9 and 4.x."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformer_lens import ActivationCache, patching
from transformer_lens.hook_points import HookPoint

import plateaulens as pl
from plateaulens.models import ModelConfig, config_from_tl, config_to_tl
from plateaulens.models.conversion import from_tl, to_tl
from plateaulens.models.transformer import Transformer
from plateaulens.tasks import MovingWindowSum

try:
    from transformer_lens import HookedTransformer  # noqa: F401

    TL3 = True
except ImportError:
    TL3 = False

KINDS = ["linear", "softmax"]
D_VOCAB, LENGTH, HEADS, D_HEAD, D_MODEL, D_MLP = 7, 5, 2, 3, 8, 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """At these sizes a second thread only costs: on a busy machine, ten times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(attention="linear", n_layers=2, **fields):
    """A tiny model whose biases and norms are random too; the final norm stays plain, as logit_attrs assumes."""
    sizes = dict(d_vocab=D_VOCAB, n_ctx=LENGTH + 1, d_model=D_MODEL, n_heads=HEADS, d_head=D_HEAD, d_mlp=D_MLP)
    fields = dict(initializer_range=0.35, seed=1) | fields
    model = Transformer(ModelConfig(**sizes, attention=attention, n_layers=n_layers, **fields))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and "ln_final" not in name:
                weight += torch.randn(weight.shape, generator=generator) * 0.1
    return model


def tokens(seed=0, batch=3):
    return torch.randint(0, D_VOCAB, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def near(a, b, atol=1e-6, rtol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


# Conversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention_dir", ["causal", "bidirectional"])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("attention", KINDS)
def test_conversion_round_trip_keeps_logits_and_weights(attention, n_layers, attention_dir):
    model = make(attention, n_layers, attention_dir=attention_dir)
    theirs = to_tl(model)
    x = tokens()
    assert not any(part.training for part in theirs.modules())
    logits, cache = model.run_with_cache(x)
    their_logits, their_cache = theirs.run_with_cache(x)
    near(their_logits, logits, rtol=0)
    for name, activation in cache.items():
        if not (name.endswith("hook_attn_scores") and attention == "softmax" and not TL3):
            near(their_cache[name], activation)
    back = from_tl(theirs)
    assert back.cfg == model.cfg and torch.equal(back(x), model(x))
    ours = dict(model.named_parameters())
    for name, weight in back.named_parameters():
        assert torch.equal(weight, ours[name]) and weight.data_ptr() != ours[name].data_ptr()
    shown = {weight.data_ptr() for weight in theirs.state_dict().values() if weight.numel()}
    assert not shown & {weight.data_ptr() for weight in [*back.parameters(), *model.parameters()]}


@pytest.mark.parametrize("act_fn", ["gelu_new", "gelu", "relu", "silu"])
def test_every_activation_converts(act_fn):
    model = make(act_fn=act_fn).double()  # in single, fused and unfused LayerNorm differ by more than 1e-6
    near(to_tl(model)(tokens()), model(tokens()), rtol=0)


@pytest.mark.parametrize("attention", KINDS)
def test_pattern_edit_of_converted_model_equals_that_of_ours(attention):
    model = make(attention)
    theirs = to_tl(model)
    sites = ["hook_pattern"] + (["hook_attn_scores"] if TL3 or attention == "linear" else [])
    for site in sites:
        hooks = [(f"blocks.1.attn.{site}", lambda a, hook: a * 0.5)]
        edited = model.run_with_hooks(tokens(), fwd_hooks=hooks)
        near(theirs.run_with_hooks(tokens(), fwd_hooks=hooks), edited, rtol=0)
        assert (edited - model(tokens())).abs().max() > 1e-3


@pytest.mark.parametrize("attention", KINDS)
def test_every_function_accepts_a_converted_model(attention, tmp_path):
    task = MovingWindowSum(n=4, k=2, p=5)
    model = Transformer(ModelConfig.for_task(task, d_model=16, n_heads=2, attention=attention, init_scale=5.0))
    eval_batch, cfg = task.sample(16, seed=1), pl.TrainConfig(steps=4, batch_size=8, lr=1e-2)
    changes = pl.ScaleAttention(task, factor=3.0), pl.FixAttention(pl.trace(model, eval_batch).pattern())
    both = model, to_tl(model)
    for change in ((), *[(change,) for change in changes]):
        ours, theirs = ({}, {})
        for values, m in ((ours, both[0]), (theirs, both[1])):
            with pl.intervene(m, *change):
                values |= pl.measure(m, eval_batch, pl.metrics.DEFAULT_METRICS)
        near(ours, theirs)
    ours, theirs = (
        pl.record(pl.train(m, task, cfg), tmp_path / name, eval_batch, every=1, save_every=2, progress=False)
        for m, name in zip(both, ("ours", "theirs"), strict=True)
    )
    near(torch.tensor(ours.metrics.loss.to_numpy()), torch.tensor(theirs.metrics.loss.to_numpy()), atol=1e-5)
    assert ours.metrics.loss.iloc[-1] < ours.metrics.loss.iloc[0]


def test_conversion_leaves_global_random_state_unchanged():
    state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    from_tl(to_tl(make()))
    assert torch.equal(torch.random.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()


def test_conversion_keeps_double_precision():
    model = make().double()
    theirs = to_tl(model)
    assert theirs(tokens()).dtype == torch.float64 and torch.equal(from_tl(theirs)(tokens()), model(tokens()))


@pytest.mark.parametrize("fields", [{}, dict(attention="softmax", attention_dir="bidirectional", act_fn="relu")])
def test_config_round_trip(fields):
    cfg = ModelConfig(d_vocab=9, n_ctx=4, d_model=12, n_layers=3, n_heads=3, eps=1e-6, seed=5, **fields)
    assert config_from_tl(config_to_tl(cfg)) == cfg


def test_initial_scale_goes_into_the_initializer_range():
    cfg = ModelConfig(d_vocab=9, n_ctx=4, init_scale=3.0)
    assert config_from_tl(config_to_tl(cfg)) == cfg.replace(init_scale=1.0, initializer_range=0.06)


def test_config_without_mark_is_softmax_attention():
    theirs = config_to_tl(ModelConfig(d_vocab=9, n_ctx=4, d_model=16, n_heads=2))
    theirs.model_name, theirs.attn_scale, theirs.n_key_value_heads, theirs.d_vocab_out = "custom", 8**0.5, 2, 9
    ours = config_from_tl(theirs)
    assert (ours.attention, ours.n_heads, ours.d_head) == ("softmax", 2, 8)


REFUSED = dict(
    normalization_type="LNPre", positional_embedding_type="shortformer", rotary_dim=4, parallel_attn_mlp=True,
    attn_only=True, use_attn_scale=False, attn_scale=1.5, n_key_value_heads=1, final_rms=True, use_local_attn=True,
    use_qk_norm=True, scale_attn_by_inverse_layer_idx=True, post_embedding_ln=True, tie_word_embeddings=True,
    attn_scores_soft_cap=30.0, output_logits_soft_cap=30.0, d_vocab_out=5, act_fn="solu_ln", attention_dir="Causal",
    use_attn_result=True, use_split_qkv_input=True, use_attn_in=True, use_hook_mlp_in=True, num_experts=4,
    uses_rms_norm=True, layer_norm_folding=True, load_in_4bit=True, init_mode="kaiming_normal", n_devices=2,
    use_normalization_before_and_after=True, original_architecture="Olmo2ForCausalLM", d_vocab=-1, n_layers=0,
    **(dict(clip_qkv=1.0, use_logn_attn=True, use_attention_sinks=True, use_yarn_rope=True) if TL3
       else dict(architecture="GPTNeoXForCausalLM", scale_embedding=True, attn_implementation="sdpa")),
)  # fmt: skip


@pytest.mark.parametrize("field", REFUSED)
@pytest.mark.usefixtures("annotations_unchecked")
def test_unsupported_config_field_raises(field):
    theirs = config_to_tl(ModelConfig(d_vocab=9, n_ctx=4, d_model=16, n_heads=2))
    assert field in theirs.to_dict()
    setattr(theirs, field, REFUSED[field])
    with pytest.raises(ValueError, match=field) as error:
        config_from_tl(theirs)
    assert str(REFUSED[field]) in str(error.value) and "\n" not in str(error.value)


def test_unsupported_model_raises():
    with pytest.raises(ValueError, match="needs a .*got Linear"):
        from_tl(torch.nn.Linear(2, 2))
    theirs = to_tl(make())
    inner = [getattr(block.attn, "original_component", block.attn) for block in theirs.blocks]
    inner[0].__class__ = type(inner[0]).__mro__[1]
    with pytest.raises(ValueError, match="one kind"):
        from_tl(theirs)
    inner[1].__class__ = type("Foreign", (type(inner[0]),), {})
    with pytest.raises(ValueError, match="got Foreign"):
        from_tl(theirs)
    theirs = to_tl(make())
    with torch.no_grad():
        if TL3:
            theirs.unembed.b_U += 1
        else:
            theirs.unembed.original_component.bias = torch.nn.Parameter(torch.ones(D_VOCAB))
    with pytest.raises(ValueError, match="(b_U|unembed.bias) must be zero"):
        from_tl(theirs)


# Hooks -----------------------------------------------------------------------------------------------------------

HEAD, SQUARE = (3, LENGTH, HEADS, D_HEAD), (3, HEADS, LENGTH, LENGTH)
STREAM, MLP, SCALE, OUT = (3, LENGTH, D_MODEL), (3, LENGTH, D_MLP), (3, LENGTH, 1), (3, LENGTH, D_VOCAB)
BLOCK_HOOKS = {
    "hook_resid_pre": STREAM, "ln1.hook_scale": SCALE, "ln1.hook_normalized": STREAM,
    "attn.hook_q": HEAD, "attn.hook_k": HEAD, "attn.hook_v": HEAD,
    "attn.hook_attn_scores": SQUARE, "attn.hook_pattern": SQUARE, "attn.hook_z": HEAD, "hook_attn_out": STREAM,
    "hook_resid_mid": STREAM, "ln2.hook_scale": SCALE, "ln2.hook_normalized": STREAM, "mlp.hook_pre": MLP,
    "mlp.hook_post": MLP, "hook_mlp_out": STREAM, "hook_resid_post": STREAM,
}  # fmt: skip
HOOKS = (
    {"hook_embed": STREAM, "hook_pos_embed": STREAM}
    | {f"blocks.{layer}.{name}": shape for layer in range(2) for name, shape in BLOCK_HOOKS.items()}
    | {"ln_final.hook_scale": SCALE, "ln_final.hook_normalized": STREAM}
    | {"unembed.hook_in": STREAM, "unembed.hook_out": OUT}
)


@pytest.mark.parametrize("attention", KINDS)
def test_hook_names_order_and_shapes(attention):
    model = make(attention)
    _, cache = model.run_with_cache(tokens())
    assert {name: tuple(activation.shape) for name, activation in cache.items()} == HOOKS
    assert list(cache.keys()) == list(HOOKS) and set(model.hook_dict) == set(HOOKS)
    _, theirs = to_tl(model).run_with_cache(tokens())
    assert {name: tuple(theirs[name].shape) for name in HOOKS} == HOOKS
    assert not TL3 or set(theirs.keys()) == set(HOOKS)


@pytest.mark.parametrize("attention", KINDS)
def test_scores_and_pattern_by_hand(attention):
    model = make(attention)
    _, cache = model.run_with_cache(tokens())
    for layer in range(2):
        q, k = cache["q", layer], cache["k", layer]
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / D_HEAD**0.5
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, 0.0 if attention == "linear" else float("-inf"))
        near(cache["attn_scores", layer], scores)
        near(cache["pattern", layer], scores if attention == "linear" else scores.softmax(-1))


@pytest.mark.parametrize("site", HOOKS)
@pytest.mark.parametrize("attention", KINDS)
def test_editing_any_site_changes_the_logits(site, attention):
    model = make(attention)
    edited = model.run_with_hooks(tokens(), fwd_hooks=[(site, lambda a, hook: a * 1.5 + 0.1 * (a == a.max()))])
    assert (edited - model(tokens())).abs().max() > 1e-4


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post"])
@pytest.mark.parametrize("layer", [0, 1])
def test_patching_the_clean_residual_gives_the_clean_logits(site, layer):
    model = make()
    name = f"blocks.{layer}.{site}"
    clean, cache = model.run_with_cache(tokens(0))
    corrupted = model(tokens(1))
    patched = model.run_with_hooks(tokens(1), fwd_hooks=[(name, lambda a, hook: cache[hook.name])])
    near(patched, clean)
    assert (corrupted - clean).abs().max() > 1e-2


def test_hooks_are_those_of_a_hooked_root_module():
    model = make()
    plain, seen = model(tokens()), []
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda a, hook: seen.append(hook.name) or a * 0)]):
        assert (model(tokens()) - plain).abs().max() > 1e-3
    assert seen == ["blocks.0.attn.hook_pattern"] and torch.equal(model(tokens()), plain)
    assert all(isinstance(point, HookPoint) for point in model.hook_dict.values())
    only, cache = model.run_with_cache(tokens(), names_filter=lambda name: name.endswith("hook_z"))
    assert torch.equal(only, plain) and list(cache.keys()) == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    grads = {}
    with model.hooks(bwd_hooks=[("blocks.0.hook_resid_mid", lambda g, hook: grads.update(g=g))]):
        model(tokens(), return_type="loss").backward()
    assert grads["g"].shape == STREAM and grads["g"].abs().sum() > 0


def test_reading_the_norm_changes_nothing():
    model = make()
    logits, _ = model.run_with_cache(tokens())
    near(logits, model(tokens()))


def test_remove_batch_dim_and_plain_dict():
    model = make()
    _, batched = model.run_with_cache(tokens()[:1])
    _, cache = model.run_with_cache(tokens()[:1], remove_batch_dim=True)
    assert isinstance(cache, ActivationCache) and not cache.has_batch_dim
    assert all(torch.equal(cache[name], batched[name][0]) for name in HOOKS)
    near(cache.decompose_resid().sum(0), cache["resid_post", 1])
    assert type(model.run_with_cache(tokens(), return_cache_object=False)[1]) is dict


# ActivationCache -------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def seen(request):
    model = make(request.param)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens())
    return model, logits, cache


def test_accumulated_resid_is_the_stream_at_each_site(seen):
    model, logits, cache = seen
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre",
             "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]  # fmt: skip
    assert torch.equal(stack, torch.stack([cache[name] for name in names])) and labels[-1] == "final_post"
    near(cache.accumulated_resid(apply_ln=True)[-1] @ model.W_U, logits)


def test_decompositions_sum_to_the_stream(seen):
    model, _, cache = seen
    final = cache["resid_post", 1]
    near(cache.decompose_resid().sum(0), final)
    near(cache.decompose_resid(1, mlp_input=True).sum(0), cache["resid_mid", 1])
    for expand in (True, False):
        stack, labels = cache.get_full_resid_decomposition(expand_neurons=expand, return_labels=True)
        assert len(stack) == len(labels) == 2 * HEADS + (2 * D_MLP if expand else 2) + 3
        near(stack.sum(0), final)
        near(cache.get_full_resid_decomposition(1, True, expand_neurons=expand).sum(0), cache["resid_mid", 1])
    near(cache.stack_head_results(incl_remainder=True).sum(0), final)
    near(cache.stack_neuron_results(2, incl_remainder=True).sum(0), final)


def test_heads_and_neurons_sum_to_their_layer_without_its_bias(seen):
    model, _, cache = seen
    cache.compute_head_results()
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels == ["L0H0", "L0H1", "L1H0", "L1H1"]
    neurons = cache.stack_neuron_results(2)
    for layer in range(2):
        near(cache["result", layer].sum(2) + model.b_O[layer], cache["attn_out", layer])
        near(heads[2 * layer : 2 * layer + 2].sum(0) + model.b_O[layer], cache["attn_out", layer])
        near(neurons[D_MLP * layer :][:D_MLP].sum(0) + model.b_out[layer], cache["mlp_out", layer])
        near(cache.get_neuron_results(layer).sum(-2) + model.b_out[layer], cache["mlp_out", layer])


def test_logit_attrs_sum_to_the_logit_difference(seen):
    _, logits, cache = seen
    right, wrong = torch.full((3, LENGTH), 2), torch.full((3, LENGTH), 5)
    for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition()):
        near(cache.logit_attrs(stack, right, wrong).sum(0), logits[..., 2] - logits[..., 5], atol=2e-6)
        near(cache.logit_attrs(stack, 2).sum(0), logits[..., 2], atol=2e-6)
    last = cache.decompose_resid(pos_slice=-1)
    near(cache.logit_attrs(last, right[:, -1], pos_slice=-1).sum(0), logits[:, -1, 2], atol=2e-6)


def test_apply_ln_to_stack_gives_the_normalized_input(seen):
    _, _, cache = seen
    for layer, mlp_input, site in [(1, False, "blocks.1.ln1"), (1, True, "blocks.1.ln2"), (2, False, "ln_final")]:
        stack = cache.decompose_resid(layer, mlp_input=mlp_input)
        near(cache.apply_ln_to_stack(stack, layer, mlp_input).sum(0), cache[f"{site}.hook_normalized"])
    near(cache.stack_neuron_results(2, apply_ln=True, incl_remainder=True).sum(0), cache["ln_final.hook_normalized"])


def test_logit_lens_reads_every_layer_and_ends_in_the_logits(seen):
    model, logits, cache = seen
    # TransformerLens 3.9 has no `logit_lens`
    values = cache.accumulated_resid(apply_ln=True) @ model.W_U if TL3 else cache.logit_lens(positions=None).values
    near(values[-1], logits)
    near(values[0], model.unembed(model.ln_final(cache["resid_pre", 0])))


def test_stack_slice_and_move(seen):
    _, _, cache = seen
    assert torch.equal(cache.stack_activation("pattern"), torch.stack([cache["pattern", 0], cache["pattern", 1]]))
    assert torch.equal(cache.stack_activation("post", 1)[0], cache["post", 0])
    sliced = cache.apply_slice_to_batch_dim(1)
    assert torch.equal(sliced["z", 0], cache["z", 0][1]) and not sliced.has_batch_dim
    assert torch.equal(cache.to("cpu")["z", 0], cache["z", 0])


@pytest.mark.parametrize("mlp_input, biases", itertools.product([False, True], repeat=2))
@pytest.mark.parametrize("layer", [0, 1])
def test_accumulated_bias_by_a_plain_loop(layer, mlp_input, biases):
    model = make()
    total = sum((model.blocks[i].attn.o.bias for i in range(layer + mlp_input)), torch.zeros(D_MODEL))
    total = sum((model.blocks[i].mlp.w_out.bias for i in range(layer) if biases), total)
    near(model.accumulated_bias(layer, mlp_input, biases), total)


# Patching --------------------------------------------------------------------------------------------------------

ALL = slice(None)
BLOCKS = dict(resid_pre="hook_resid_pre", resid_mid="hook_resid_mid", attn_out="hook_attn_out", mlp_out="hook_mlp_out")
HEADS_OUT = dict(out="hook_z", q="hook_q", k="hook_k", v="hook_v")
POSITIONS, HEAD_RANGE = range(LENGTH), range(HEADS)
# name -> site, ranges of the result's axes after the layer, what they index
PATCHES = {f"{kind}": (site, [POSITIONS], lambda p: (ALL, p)) for kind, site in BLOCKS.items()}
for kind, site in HEADS_OUT.items():
    by_pos = (f"attn.{site}", [POSITIONS, HEAD_RANGE], lambda p, h: (ALL, p, h))
    PATCHES[f"attn_head_{kind}_by_pos"] = by_pos
    PATCHES[f"attn_head_{kind}_all_pos"] = (f"attn.{site}", [HEAD_RANGE], lambda h: (ALL, ALL, h))
PATCHES |= {
    "attn_head_pattern_all_pos": ("attn.hook_pattern", [HEAD_RANGE], lambda h: (ALL, h)),
    "attn_head_pattern_by_pos": ("attn.hook_pattern", [HEAD_RANGE, POSITIONS], lambda h, d: (ALL, h, d)),
    "attn_head_pattern_dest_src_pos": (
        "attn.hook_pattern",
        [HEAD_RANGE, POSITIONS, POSITIONS],
        lambda h, d, s: (ALL, h, d, s),
    ),
}
EVERY = {
    "block_every": ["resid_pre", "attn_out", "mlp_out"],
    "attn_head_all_pos_every": [f"attn_head_{k}_all_pos" for k in ("out", "q", "k", "v", "pattern")],
    "attn_head_by_pos_every": [f"attn_head_{k}_by_pos" for k in ("out", "q", "k", "v", "pattern")],
}
# 4.x only: these switch on a bridge's split inputs, which a Transformer does not have, and so refuse
REFUSING = set() if TL3 else {"direct_path", "direct_path_all_sources"}


@pytest.fixture(scope="module", params=KINDS)
def sweep(request):
    """Clean and corrupted runs that differ in the first token only, and every sweep done by a plain loop."""
    model = make(request.param)
    clean_tokens = tokens(batch=2)
    corrupted = clean_tokens.clone()
    corrupted[:, 0] = (corrupted[:, 0] + 3) % D_VOCAB
    with torch.no_grad():
        logits, cache = model.run_with_cache(clean_tokens)

    def metric(logits):
        return (logits[:, -1, 2] - logits[:, -1, 4]).mean()

    def loop(name):
        site, axes, index = PATCHES[name]
        values = []
        for layer, *at in itertools.product(range(2), *axes):
            where = index(*at)

            def hook(activation, hook, where=where):
                activation = activation.clone()
                activation[where] = cache[hook.name][where]
                return activation

            values.append(metric(model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.{site}", hook)])))
        return torch.stack(values).reshape(2, *map(len, axes))

    with torch.no_grad():
        return model, corrupted, cache, metric, metric(logits), {name: loop(name) for name in PATCHES}


def test_every_transformerlens_patching_function_has_a_case():
    theirs = {name.removeprefix("get_act_patch_") for name in dir(patching) if name.startswith("get_act_patch_")}
    assert theirs == set(PATCHES) | set(EVERY) | REFUSING


@pytest.mark.parametrize("name", [*PATCHES, *EVERY])
def test_patching_function_equals_a_plain_loop(name, sweep):
    model, corrupted, cache, metric, clean, truth = sweep
    with torch.no_grad():
        got = getattr(patching, f"get_act_patch_{name}")(model, corrupted, cache, metric)
    if name in EVERY:
        parts = [truth[part] for part in EVERY[name]]
        if name == "attn_head_by_pos_every":
            parts[-1] = parts[-1].transpose(1, 2)
        near(got, torch.stack(parts))
    else:
        near(got, truth[name])
        assert (got - metric(model(corrupted))).abs().max() > 1e-4


def test_patching_the_clean_stream_recovers_the_clean_metric(sweep):
    model, corrupted, cache, metric, clean, _ = sweep
    assert (metric(model(corrupted)) - clean).abs() > 1e-2
    with torch.no_grad():
        near(patching.get_act_patch_resid_pre(model, corrupted, cache, metric)[0, 0], clean)  # where tokens differ
        mid = patching.get_act_patch_resid_mid(model, corrupted, cache, metric)
        mlp = patching.get_act_patch_mlp_out(model, corrupted, cache, metric)
    near(mid[1, -1], clean)  # after the last attention nothing else reaches the last position
    assert (mid - mlp).abs().max() > 1e-2  # a native bridge returns equal numbers


@pytest.mark.parametrize("name", sorted(REFUSING) or ["none on 3.9"])
def test_direct_path_patching_raises_attribute_error(name, sweep):
    model, corrupted, cache, metric, *_ = sweep
    one_source = (0, 0) if name == "direct_path" else ()
    with pytest.raises(AttributeError):
        getattr(patching, f"get_act_patch_{name}")(model, corrupted, cache, cache, metric, *one_source)


# The model itself ------------------------------------------------------------------------------------------------


def test_weight_properties_have_transformerlens_shapes():
    model = make()
    theirs = to_tl(model)
    names = "W_E W_pos W_U b_U W_Q W_K W_V W_O b_Q b_K b_V b_O W_in W_out b_in b_out".split()
    for name in names:
        assert torch.equal(getattr(model, name), getattr(theirs, name)), name
    near(model.tokens_to_residual_directions(torch.tensor([1, 3])), model.W_U.T[[1, 3]])


def test_loss_is_mean_next_token_cross_entropy():
    model, x = make(), tokens()
    log_probs = F.log_softmax(model(x), -1)
    by_hand = -sum(log_probs[b, i, x[b, i + 1]] for b in range(3) for i in range(LENGTH - 1)) / (3 * (LENGTH - 1))
    near(model(x, return_type="loss"), by_hand)
    near(to_tl(model)(x, return_type="loss"), by_hand)
    assert model(x, return_type=None) is None


@pytest.mark.usefixtures("annotations_unchecked")
def test_misuse_raises():
    with pytest.raises(ValueError, match="return_type must be"):
        make()(tokens(), return_type="both")
    with pytest.raises(ValueError, match="are more than n_ctx=6"):
        make()(torch.zeros(1, 7, dtype=torch.long))


@pytest.mark.parametrize("attention", KINDS)
def test_decoding_with_a_cache_equals_decoding_without(attention):
    model, x = make(attention), tokens()
    kv = model.kv_cache(3)
    steps = [model(part, past_kv_cache=kv) for part in (x[:, :2], x[:, 2:3], x[:, 3:])]
    near(torch.cat(steps, 1), model(x))
    assert make(attention_dir="bidirectional").kv_cache(3) is None


def test_moving_window_sum_model_has_the_papers_size_and_initial_weights():
    model = Transformer(ModelConfig.for_task(MovingWindowSum(), n_layers=1))
    assert sum(weight.numel() for weight in model.parameters()) == 807_936
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 0.02 / 2**0.5 if name.endswith(("attn.o.weight", "mlp.w_out.weight")) else 0.02
            # five standard errors of a standard deviation and of a mean
            assert abs(weight.std() / std - 1) < 5 / (2 * weight.numel()) ** 0.5, name
            assert abs(weight.mean()) < 5 * std / weight.numel() ** 0.5, name
        elif name.endswith(".w"):
            assert (weight == 1).all()
        else:
            assert (weight == 0).all()


def test_construction_is_reproducible_without_global_random_state():
    state = torch.random.get_rng_state()
    one, same, other = make(), make(), make(seed=9)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.W_Q, same.W_Q) and not torch.equal(one.W_Q, other.W_Q)
    near(make(init_scale=2.0).W_Q, 2 * one.W_Q)


def test_stays_in_eval_mode():
    model = make()
    assert not any(part.training for part in [*model.modules(), *model.train().modules()])
