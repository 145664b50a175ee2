"""A `PlainModel` generates and measures the same as the bridge around it, and is opened only where it suffices."""

from copy import deepcopy

import pytest
import torch

import plateaulens as pl
from plateaulens.lm import generation, loading
from plateaulens.lm.generation import batch_by_length, generate
from plateaulens.protocols import HookedModel

SITES = [*(f"blocks.{i}.hook_resid_{where}" for i in (0, 1) for where in ("pre", "post")), "unembed.hook_in"]


def prompts(lengths=(5, 11, 3, 5, 8, 1, 14), n_new=6):
    rng = torch.Generator().manual_seed(0)
    return pl.Batch.prompts([torch.randint(1, 50, (n,), generator=rng).tolist() for n in lengths], n_new)


def new_models(model, dtype=torch.float32):
    """A plain model and a bridge with the same new weights; the shared fixtures are left alone."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        hf = type(model)(model.config).to(dtype).eval()
    plain = pl.lm.PlainModel(deepcopy(hf))
    return plain, build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)


@pytest.fixture
def plain(neox):
    return new_models(neox[0])[0]


@pytest.fixture
def bridge(neox):
    return new_models(neox[0])[1]


@pytest.mark.parametrize("kind", ["neox", "olmo2"])
@pytest.mark.parametrize("padding", [0, 20, 10**6])
def test_plain_model_gives_the_numbers_of_the_bridge(kind, padding, request, monkeypatch):
    plain, bridge = new_models(request.getfixturevalue(kind)[0])
    monkeypatch.setattr(generation, "MAX_PADDING", padding)
    ours = generate(plain, prompts(), SITES, logits=True, entropy=True)
    theirs = generate(bridge, prompts(), SITES, logits=True, entropy=True)
    assert torch.equal(ours.tokens, theirs.tokens)
    for name in ("logits", "entropy"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    for name in SITES:
        torch.testing.assert_close(ours.rows[name], theirs.rows[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_plain_model_gives_the_numbers_of_the_bridge_in_other_types(dtype, neox):
    plain, bridge = new_models(neox[0], dtype)
    ours, theirs = (generate(model, prompts(), SITES) for model in (plain, bridge))
    assert torch.equal(ours.tokens, theirs.tokens)
    for name in SITES:
        torch.testing.assert_close(ours.rows[name], theirs.rows[name], rtol=1e-5, atol=1e-5)


def test_teacher_forced_trace_is_that_of_the_bridge(neox):
    plain, bridge = new_models(neox[0])
    batch = prompts((6, 6, 6))
    ours, theirs = (pl.trace(model, batch, [*SITES, "outputs"]) for model in (plain, bridge))
    torch.testing.assert_close(ours.outputs, theirs.outputs, rtol=1e-5, atol=1e-5)
    for name in SITES:
        torch.testing.assert_close(ours.cache[name], theirs.cache[name], rtol=1e-5, atol=1e-5)


def test_sites_are_hugging_faces_hidden_states(plain):
    tokens = prompts((7, 7)).tokens
    cache = {}
    with plain.hooks([(name, lambda t, hook, name=name: cache.update({name: t})) for name in SITES]), torch.no_grad():
        plain(tokens)
    with torch.no_grad():
        hidden = plain.original_model(tokens, output_hidden_states=True).hidden_states
    for name, layer in (("blocks.0.hook_resid_pre", 0), ("blocks.0.hook_resid_post", 1), ("unembed.hook_in", -1)):
        torch.testing.assert_close(cache[name], hidden[layer])
    norm = plain.original_model.gpt_neox.final_layer_norm
    torch.testing.assert_close(norm(cache["blocks.1.hook_resid_post"]), hidden[-1])


def test_measuring_leaves_no_hook_and_the_global_generator_alone(plain):
    assert isinstance(plain, HookedModel)
    state = torch.get_rng_state()
    pl.measure(plain, prompts(), ["collapse", "repetition", "norm@*"])
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
    with pytest.raises(ZeroDivisionError), plain.hooks([("unembed.hook_in", lambda t, hook: 1 / 0)]):
        plain(prompts().tokens)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
    assert not any(point.fwd_hooks for point in plain.hook_dict.values())


def test_edits_and_other_hooks_are_refused(plain):
    with pytest.raises(ValueError, match="unknown hook 'blocks.0.attn.hook_q'"):
        pl.trace(plain, prompts(), ["blocks.0.attn.hook_q"])
    with pytest.raises(ValueError, match="can be read, not edited"), pl.intervene(plain, pl.AblateHeads([(1, 0)])):
        pass
    with plain.hooks([("unembed.hook_in", lambda t, hook: 2 * t)]), pytest.raises(ValueError, match="not edited"):
        plain(prompts().tokens)
    with pytest.raises(ValueError, match="no hooks on gradients"), plain.hooks(bwd_hooks=[("unembed.hook_in", print)]):
        pass
    with pytest.raises(ValueError, match="cannot find the blocks of"):
        plain.original_model.gpt_neox.layers = torch.nn.Sequential(*plain.original_model.gpt_neox.layers)
        pl.lm.PlainModel(plain.original_model)


def test_hooks_of_the_callers_get_whole_sequences(plain):
    lengths = []
    with plain.hooks([("blocks.0.hook_resid_pre", lambda t, hook: lengths.append(t.shape[1]))]):
        generate(plain, prompts((6, 6)))
    assert lengths == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_weights_changed_on_the_bridge_are_used(name, bridge):
    before = generate(bridge, prompts(), SITES, logits=True)
    getattr(bridge.blocks[1].attn, name).weight.data[:8] *= 3.0  # a bridge has copies of fused weights
    after = generate(bridge, prompts(), SITES, logits=True)
    assert not torch.allclose(before.logits[:, 0], after.logits[:, 0], atol=1e-4)
    row = prompts().tokens[1:2, :11]
    torch.testing.assert_close(after.logits[1, 0], bridge(row)[0, -1], rtol=1e-5, atol=1e-5)


METRICS = [
    (["collapse", "repetition", "collapse@blocks.*.hook_resid_post", "prediction_entropy"], False),
    (pl.lm.DEFAULT_METRICS, False),
    (["norm@*"], True),
    (["norm@blocks.*.hook_resid_*"], True),
    (["collapse", "norm@blocks.0.hook_attn_out"], True),
]


@pytest.mark.parametrize("metrics, bridges", METRICS, ids=lambda m: m[0] if isinstance(m, list) else "")
def test_bridge_is_opened_only_where_a_metric_needs_it(metrics, bridges, suite_folder, tmp_path, monkeypatch):
    opened, original = [], loading.to_bridge
    monkeypatch.setattr("plateaulens.lm.suite.to_bridge", lambda *args: opened.append(args) or original(*args))
    suite = pl.lm.from_folder(suite_folder)
    batch = suite.prompts(n=3)
    results = pl.lm.evaluate(suite, tmp_path / "s", batch, list(metrics), [16], progress=False)
    assert bool(opened) == bridges
    expected = pl.measure(suite.model(16), batch, list(metrics))  # the same columns, whichever was opened
    assert list(results.metrics) == [*expected, "near_ties"]
    for name, value in expected.items():
        assert results.metrics[name][16] == pytest.approx(float(value), abs=1e-5)


def test_function_without_requirements_gets_a_full_trace(suite_folder, tmp_path):
    def heads(trace):
        return trace.cache["blocks.0.attn.hook_q"].shape[2] * torch.ones(len(trace.batch))

    batch = pl.Batch.prompts([[1, 2, 3], [4, 5, 6]], 2)
    suite = pl.lm.from_folder(suite_folder)
    results = pl.lm.evaluate(suite, tmp_path / "s", batch, [heads], [16], progress=False)
    assert results.metrics.heads[16] > 0


def test_prompts_of_about_one_length_share_a_pass():
    lengths = [30, 1, 5, 2, 6, 1, 9, 5]
    assert batch_by_length(lengths, max_padding=3) == [[1, 5, 3], [2, 7, 4], [6], [0]]
    assert batch_by_length(lengths, max_padding=0) == [[1, 5], [3], [2, 7], [4], [6], [0]]
    assert batch_by_length(lengths, max_prompts=3) == [[1, 5, 3], [2, 7, 4], [6, 0]]
    assert batch_by_length(lengths, max_tokens=10) == [[1, 5, 3], [2, 7], [4], [6], [0]]
    assert batch_by_length(lengths) == [[1, 5, 3, 2, 7, 4, 6, 0]]
