"""Interventions act exactly where they say, and say so when they cannot."""

from functools import cache as once

import pytest
import torch

import plateaulens as pl
from plateaulens.hooks import active_interventions, check_writable, has_user_hooks
from plateaulens.interventions import from_json

PATTERN = "blocks.0.attn.hook_pattern"
TASK = pl.tasks.MovingWindowSum()
SMALL = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
ATTENTIONS = pytest.mark.parametrize("attention", ["linear", "softmax"])


def build(task=SMALL, attention="linear", seed=0, **fields):
    sizes = dict(d_model=16, n_heads=2, init_scale=8.0) | fields
    return pl.Transformer(pl.ModelConfig.for_task(task, attention=attention, seed=seed, **sizes))


def hooks_of(model):
    return sum(len(p.fwd_hooks) for p in model.hook_dict.values()) + len(model.embed._forward_pre_hooks)


@ATTENTIONS
@pytest.mark.parametrize("n_layers", [1, 2])
def test_scaling_multiplies_thirty_entries_and_no_other(attention, n_layers):
    model, batch = build(TASK, attention, n_layers=n_layers), TASK.sample(4, seed=0)
    plain = pl.trace(model, batch)
    with pl.intervene(model, pl.ScaleAttention(TASK, factor=10.0)):
        scaled = pl.trace(model, batch)
    factor = torch.ones(32, 32)
    for r in range(1, 16):
        factor[16 + r, r - 1] = factor[16 + r, r] = 10.0
    assert int((factor != 1).sum()) == 30
    last = n_layers - 1
    assert torch.equal(scaled.pattern()[last], plain.pattern()[last] * factor)
    if last:
        assert torch.equal(scaled.pattern()[0], plain.pattern()[0])
    assert torch.equal(scaled.outputs[:, :17], plain.outputs[:, :17])  # rows without a scaled entry
    assert ((scaled.outputs - plain.outputs)[:, 17:].abs().amax((0, 2)) > 1e-6).all()


def test_scaling_by_one_changes_nothing():
    model, batch = build(), SMALL.sample(4, seed=0)
    plain = pl.trace(model, batch).outputs
    with pl.intervene(model, pl.ScaleAttention(SMALL, factor=1.0)):
        assert torch.equal(pl.trace(model, batch).outputs, plain)


@ATTENTIONS
def test_fixing_a_models_own_pattern_changes_nothing(attention):
    model, batch = build(attention=attention), SMALL.sample(4, seed=0)
    plain = pl.trace(model, batch)
    with pl.intervene(model, pl.FixAttention(plain.pattern())):
        fixed = pl.trace(model, batch)
    torch.testing.assert_close(fixed.outputs, plain.outputs)
    assert torch.equal(fixed.pattern()[0], plain.pattern()[0])


@ATTENTIONS
def test_fixing_the_pattern_of_another_model_sets_it(attention):
    model, other, batch = build(attention=attention), build(attention=attention, seed=1), SMALL.sample(4, seed=0)
    plain, foreign = pl.trace(model, batch), pl.trace(other, batch).pattern()
    with pl.intervene(model, pl.FixAttention(foreign)):
        fixed = pl.trace(model, batch)
    assert torch.equal(fixed.pattern()[0], foreign[0])
    assert not torch.allclose(fixed.outputs, plain.outputs)
    model.zero_grad()
    with pl.intervene(model, pl.FixAttention(foreign)):
        model(batch.inputs).sum().backward()
    assert not model.blocks[0].attn.q.weight.grad.any() if model.blocks[0].attn.q.weight.grad is not None else True


MAPS = [((8, 8), True), ((2, 8, 8), True), ((4, 2, 8, 8), True)]
WRONG = [((7, 7), "covers 7"), ((3, 8, 8), "shape"), ((1, 8, 8), "shape"), ((3, 2, 8, 8), "shape"), ((4, 8), "shape")]


@pytest.mark.parametrize("shape, _", MAPS)
def test_a_tensor_may_leave_leading_axes_out(shape, _):
    model, batch = build(), SMALL.sample(4, seed=0)
    full = torch.rand(shape)
    with pl.intervene(model, pl.FixAttention(full)):
        assert torch.equal(pl.trace(model, batch).pattern()[0], full.expand(4, 2, 8, 8))


@pytest.mark.parametrize("shape, message", WRONG)
def test_a_tensor_of_another_shape_raises(shape, message):
    model, batch = build(), SMALL.sample(4, seed=0)
    with pytest.raises(ValueError, match=message), pl.intervene(model, pl.FixAttention(torch.rand(shape))):
        model(batch.inputs)
    assert not hooks_of(model) and not active_interventions(model)


@pytest.mark.parametrize("shape", [(8,), (1, 1, 1, 8, 8)])
def test_tensor_that_is_not_a_map_raises_at_construction(shape):
    with pytest.raises((ValueError, TypeError)):  # TypeError: where shapes are checked at run time
        pl.FixAttention(torch.rand(shape))


def test_pattern_applies_to_its_own_prompts_unless_averaged():
    model, batch, other = build(), SMALL.sample(4, seed=0), SMALL.sample(4, seed=1)
    pattern = pl.trace(build(seed=1), batch).pattern()
    for wrong in (other, batch[:3]):
        with pytest.raises(ValueError, match="other prompts"), pl.intervene(model, pl.FixAttention(pattern)):
            model(wrong.inputs)
    mean = pattern.mean()
    assert mean.prompts is None and torch.equal(mean[0], pattern[0].mean(0))
    with pl.intervene(model, pl.FixAttention(mean)):
        for any_prompts in (batch, other, SMALL.sample(7, seed=2)):
            seen = pl.trace(model, any_prompts).pattern()[0]
            assert torch.equal(seen, mean[0].expand(len(any_prompts), -1, -1, -1))
    with pytest.raises(ValueError, match="'batch' only"):
        pattern.mean("head")
    with pytest.raises(ValueError, match=r"layers \[0\]"):
        pattern[3]


def test_edit_that_never_fired_raises_and_unused_block_warns():
    model, batch = build(), SMALL.sample(2, seed=0)
    scale = pl.ScaleAttention(SMALL, factor=2.0)
    with pytest.warns(UserWarning, match="never ran"), pl.intervene(model, scale):
        pass
    with pytest.raises(ValueError, match="never applied.*hook_pattern"), pl.intervene(model, scale):
        model.embed(batch.inputs)
    assert not hooks_of(model)


def test_missing_sites_and_maps_raise_on_entering():
    model = build()
    with (
        pytest.raises(ValueError, match="blocks.0.attn.hook_pattern"),
        pl.intervene(model, pl.FixAttention(torch.eye(8), layer=5)),
    ):
        pass

    class Blind(pl.tasks.MovingWindowSum):
        def optimal_attention(self, batch=None):
            return None

    with (
        pytest.raises(ValueError, match="optimal attention map"),
        pl.intervene(model, pl.ScaleAttention(Blind(n=4), factor=2.0)),
    ):
        pass
    assert not hooks_of(model) and not active_interventions(model)


def test_hooks_are_gone_after_an_exception():
    model, batch = build(), SMALL.sample(2, seed=0)
    plain = model(batch.inputs)
    with pytest.raises(RuntimeError, match="boom"), pl.intervene(model, pl.ScaleAttention(SMALL, factor=2.0)):
        assert hooks_of(model) and active_interventions(model)
        raise RuntimeError("boom")
    assert not hooks_of(model) and not active_interventions(model) and torch.equal(model(batch.inputs), plain)


def test_nested_interventions_apply_in_order_and_are_removed():
    model, batch = build(), SMALL.sample(3, seed=0)
    two, flat = pl.ScaleAttention(SMALL, factor=2.0), pl.FixAttention(torch.ones(8, 8).tril())
    (omega,) = SMALL.optimal_attention()
    seen = lambda: pl.trace(model, batch).pattern()[0]  # noqa: E731
    plain = seen()
    with pl.intervene(model, flat):
        with pl.intervene(model, two):
            assert active_interventions(model) == [flat, two] and not has_user_hooks(model)
            doubled = seen()
        assert active_interventions(model) == [flat]
        assert torch.equal(seen(), torch.ones(3, 2, 8, 8).tril())
    expected = torch.ones(8, 8).tril()
    expected[omega[0]] = 2.0
    expected[4, 0] = 1.0  # the partial solution is left alone
    assert torch.equal(doubled, expected.expand(3, 2, -1, -1))
    with pl.intervene(model, two, flat):
        assert torch.equal(seen(), torch.ones(3, 2, 8, 8).tril())
    assert torch.equal(seen(), plain) and not active_interventions(model)


def test_json_round_trip():
    model, batch = build(), SMALL.sample(2, seed=0)
    pattern = pl.trace(model, batch).pattern()
    values = [
        pl.ScaleAttention(SMALL, factor=2.5),
        pl.FixAttention(pattern),
        pl.FixAttention(pattern.mean()),
        pl.FixAttention(torch.rand(8, 8), layer=0),
    ]
    for value in values:
        back = from_json(value.to_json(), value.tensors())
        assert back == value and hash(back) == hash(value) and type(back) is type(value)
    assert len({repr(v.to_json()) for v in values}) == 4 == len(set(values))
    assert pl.ScaleAttention(SMALL, factor=2.0) != pl.ScaleAttention(SMALL, factor=3.0)
    changed = pattern[0].clone()
    changed[0, 0, 0, 0] += 1
    assert pl.FixAttention(changed) != pl.FixAttention(pattern[0])
    with pytest.raises(ValueError, match="did you mean 'FixAttention'"):
        from_json({"intervention": "FixAttenton"})


def test_graft_under_an_intervention_raises():
    model, donor, batch = build(), build(seed=1), SMALL.sample(2, seed=0)
    for change in (pl.Freeze("attn"), pl.ScaleAttention(SMALL, factor=2.0)):
        with pl.intervene(model, change):
            with pytest.raises(ValueError, match="cannot graft while .* is active"):
                pl.graft(model, donor, "attn")
            with pl.intervene(donor, pl.Freeze("attn")):
                from_frozen = pl.graft(build(), donor, "attn")  # weights alone
                model(batch.inputs), donor(batch.inputs)
            assert all(p.requires_grad for p in from_frozen.parameters())
    assert pl.graft(model, donor, "attn") is not model


def test_interventions_with_scalar_tensors_differ_and_are_stored():
    one, two = (pl.Patch("blocks.0.hook_resid_post", torch.tensor(x)) for x in (1.0, 2.0))
    assert one == one and one != two and from_json(one.to_json(), one.tensors()) == one


def test_fixing_attention_of_a_language_model_changes_logits(neox):
    bridge, prompts = neox[1], torch.arange(12).view(2, 6)
    batch = pl.Batch.prompts(prompts, n_new=3)
    plain = pl.trace(bridge, batch)
    flat = torch.ones(8, 8).tril() / torch.arange(1, 9)[:, None]
    with pl.intervene(bridge, pl.FixAttention(flat, layer=1)):
        fixed = pl.trace(bridge, batch)
    torch.testing.assert_close(fixed.pattern()[1], flat.expand(2, 2, -1, -1))
    torch.testing.assert_close(fixed.pattern()[0][:, :, :6, :6], plain.pattern()[0][:, :, :6, :6])
    assert not torch.allclose(fixed.outputs[:, :5], plain.outputs[:, :5], atol=1e-3)
    again = pl.trace(bridge, batch)
    assert torch.equal(again.outputs, plain.outputs)
    with pl.intervene(bridge, pl.FixAttention(plain.pattern())):
        torch.testing.assert_close(pl.trace(bridge, batch).outputs, plain.outputs, rtol=1e-4, atol=1e-4)


@once
def native():
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    cfg = TransformerBridgeConfig(
        d_model=16, d_head=8, n_layers=1, n_ctx=8, n_heads=2, d_vocab=6, act_fn="gelu_new", d_mlp=32, seed=0
    )
    return TransformerBridge.boot_native(cfg)


@pytest.mark.parametrize("site", ["blocks.0.attn.hook_attn_scores", "blocks.0.hook_resid_mid"])
def test_edits_without_effect_on_a_native_bridge_raise(site):
    with pytest.raises(ValueError, match="would not take effect on this bridge.*pl.Transformer"):
        check_writable(native(), site)
    check_writable(build(), site)


def test_unknown_site_raises_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean .*hook_attn_scores"):
        check_writable(build(), "blocks.0.attn.hook_atn_scores")


def test_map_of_another_task_or_empty_pattern_raises():
    model, batch = build(), SMALL.sample(2, seed=0)
    with (
        pytest.raises(ValueError, match="33 tokens and the model n_ctx=9"),
        pl.intervene(model, pl.ScaleAttention(TASK, factor=2.0)),
    ):
        pass
    with pytest.raises(ValueError, match="has no maps"):
        pl.FixAttention(pl.trace(model, batch, ["outputs"]).pattern())
