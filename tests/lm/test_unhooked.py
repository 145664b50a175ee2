"""A bridge and the Hugging Face model inside it say and think the same; where they could not, the bridge is taken."""

from unittest.mock import patch

import pytest
import torch

import plateaulens as pl
from plateaulens.lm import generation as generating
from plateaulens.lm import unhooked as room
from plateaulens.lm.generation import generate
from plateaulens.lm.unhooked import batch_by_length, unhooked

SITES = [*(f"blocks.{i}.hook_resid_{where}" for i in (0, 1) for where in ("pre", "post")), "unembed.hook_in"]


def prompts(lengths=(5, 11, 3, 5, 8, 1, 14), n_new=6):
    rng = torch.Generator().manual_seed(0)
    return pl.Batch.prompts([torch.randint(1, 50, (n,), generator=rng).tolist() for n in lengths], n_new)


def fresh(model):
    """A bridge around a new model like `model`: other tests leave their marks on those that all share."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        hf = type(model)(model.config).eval()
        return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)


@pytest.fixture
def bridge(neox):
    """One of its own, to be spoilt."""
    return fresh(neox[0])


@pytest.mark.parametrize("kind", ["neox", "olmo2"])
@pytest.mark.parametrize("padding", [0, 20, 10**6])
def test_without_hooks_everything_is_as_with_them(kind, padding, request, monkeypatch):
    model = fresh(request.getfixturevalue(kind)[0])
    assert unhooked(model, SITES) is not None
    monkeypatch.setattr(room, "PADDING", padding)
    monkeypatch.setattr(room, "ROOM", 2)  # of 5 tokens that need it
    quick = generate(model, prompts(), SITES, logits=True)
    with patch.object(generating, "unhooked", lambda *_: None):
        slow = generate(model, prompts(), SITES, logits=True)
    assert torch.equal(quick.tokens, slow.tokens)
    torch.testing.assert_close(quick.logits, slow.logits, rtol=1e-5, atol=1e-5)
    for name in SITES:
        torch.testing.assert_close(quick.rows[name], slow.rows[name], rtol=1e-5, atol=1e-5)


def test_it_has_the_weights_of_the_bridge_and_leaves_it_as_it_was(bridge):
    before, modules = dict(bridge.named_parameters()), list(bridge.modules())
    state = torch.get_rng_state()
    plain = unhooked(bridge, SITES).original_model
    assert {id(p) for p in plain.parameters()} <= {id(p) for p in before.values()}
    assert not any(hasattr(m, "hook_in") for m in plain.modules())
    assert all(a is b for a, b in zip(modules, bridge.modules(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    generate(bridge, prompts(), SITES)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_weight_that_only_the_bridge_has_is_heeded(name, bridge):
    generate(bridge, prompts())
    getattr(bridge.blocks[1].attn, name).weight.data[3, 5] += 1e-4  # of which even the version says nothing
    assert unhooked(bridge) is None


def test_a_weight_that_both_have_is_changed_in_both(bridge):
    bridge.blocks[0].mlp.out.weight.data.mul_(2.0)
    plain = unhooked(bridge).original_model
    tokens = prompts().tokens[:, :3]
    torch.testing.assert_close(plain(tokens).logits, bridge(tokens), rtol=1e-5, atol=1e-5)


def test_whoever_looks_or_acts_gets_the_bridge(bridge):
    assert unhooked(bridge, ["blocks.0.attn.hook_q"]) is None
    assert unhooked(pl.Transformer(pl.ModelConfig(d_model=16, n_heads=2, d_vocab=50, n_ctx=32, seed=0))) is None
    with bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda t, hook: None)]):
        assert unhooked(bridge) is None
    with pl.intervene(bridge, pl.AblateHeads([(1, 0)], mode="uniform")):
        bridge(prompts().tokens)
        assert unhooked(bridge) is None
    block = bridge.blocks[0]
    for module in (bridge, bridge.original_model, block, block.original_component, bridge.unembed):
        handle = module.register_forward_hook(lambda m, args, out: None)
        assert unhooked(bridge) is None
        handle.remove()
    with patch.dict(vars(bridge.blocks[1]), forward=bridge.blocks[1].forward):
        assert unhooked(bridge) is None
    assert unhooked(bridge) is not None


def test_prompts_of_about_one_length_go_together():
    lengths = [30, 1, 5, 2, 6, 1, 9, 5]
    assert batch_by_length(lengths, padding=3) == [[1, 5, 3], [2, 7, 4], [6], [0]]
    assert batch_by_length(lengths, padding=0) == [[1, 5], [3], [2, 7], [4], [6], [0]]
    assert batch_by_length(lengths, rows=3) == [[1, 5, 3], [2, 7, 4], [6, 0]]
    assert batch_by_length(lengths, tokens=10) == [[1, 5, 3], [2, 7], [4], [6], [0]]
    assert batch_by_length(lengths) == [[1, 5, 3, 2, 7, 4, 6, 0]]
