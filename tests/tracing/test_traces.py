"""Traces and metrics against direct computation, decoding by full passes, and plain Hugging Face."""

import pytest
import torch
import torch.nn.functional as F

import plateaulens as pl
from plateaulens.hooks import hook_names

TASK = pl.tasks.MovingWindowSum(n=5, k=2, p=7)
PROMPTS = torch.randint(0, 50, (5, 6), generator=torch.Generator().manual_seed(1))


def build(attention="linear", seed=0, **fields):
    sizes = dict(d_model=16, n_layers=2, n_heads=2, init_scale=8.0) | fields
    return pl.Transformer(pl.ModelConfig.for_task(TASK, attention=attention, seed=seed, **sizes))


@torch.no_grad()
def naive(model, tokens, count):
    """Greedy decoding that runs the whole prefix again for every token."""
    start = tokens.shape[1]
    for _ in range(count):
        logits = model(tokens)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[:, start:]


@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("seed", range(4))
def test_cached_decoding_equals_full_passes(attention, seed):
    model, batch = build(attention, seed), TASK.sample(32, seed=seed)
    got = pl.greedy_decode(model, batch)
    assert torch.equal(got, naive(model, batch.tokens[:, :6], 5))
    assert len(got.unique()) > 2


def test_bidirectional_models_decode_by_full_passes():
    model, batch = build("softmax", attention_dir="bidirectional"), TASK.sample(16, seed=0)
    assert torch.equal(pl.greedy_decode(model, batch), naive(model, batch.tokens[:, :6], 5))


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_metrics_equal_their_formulas_on_the_logits(attention):
    model, batch = build(attention), TASK.sample(24, seed=1)
    with torch.no_grad():
        logits = model(batch.tokens[:, :-1])
    own, true = naive(model, batch.tokens[:, :6], 5), batch.tokens[:, 6:]
    got = pl.measure(model, batch, list(pl.metrics.METRICS))
    nats = F.cross_entropy(logits.mT, batch.tokens[:, 1:], reduction="none")
    pattern = pl.trace(model, batch).pattern()[1]
    (omega,) = TASK.optimal_attention()
    mass = pattern.abs().sum(1)[:, 5:]
    on = (mass * omega[:, 5:]).sum((1, 2))
    expected = {
        "loss": nats.mean(),
        "answer_loss": nats[:, 5:].mean(),
        "tf_accuracy": (logits[:, 5:].argmax(-1) == true).float().mean(),
        "accuracy": (own == true).float().mean(),
        "position_accuracy": (own == true).float().mean(0),
        "repetition": (own[:, 1:] == own[:, :-1]).float().mean(),
        "attention_progress": (on / mass.sum((1, 2))).mean(),
        "attention_progress_global": on.sum() / mass.sum(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(got["loss"], TASK.loss(logits, batch))
    assert set(got) == set(pl.metrics.METRICS)


def test_collapse_leaves_the_partial_solution_out():
    model, batch = build(), TASK.sample(6, seed=1)
    _, cache = model.run_with_cache(batch.inputs)
    final = cache["ln_final.hook_normalized"] * model.ln_final.w + model.ln_final.b
    for site, hidden in {
        "unembed.hook_in": final,
        "blocks.0.hook_resid_post": cache["blocks.0.hook_resid_post"],
    }.items():
        got = pl.measure(model, batch, [f"collapse@{site}"], reduce=None)[f"collapse@{site}"]
        for b in range(6):
            pairs = [F.cosine_similarity(hidden[b, i], hidden[b, j], dim=0) for i in range(6, 10) for j in range(6, i)]
            torch.testing.assert_close(got[b], torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)
    whole = pl.measure(model, batch, [pl.metrics.collapse, "collapse@unembed.hook_in"])
    torch.testing.assert_close(whole["collapse"], whole["collapse@unembed.hook_in"])


def test_trace_is_unchanged_by_later_hooks():
    model, batch = build(), TASK.sample(3, seed=1)
    t = pl.trace(model, batch)
    logits, cache = model.run_with_cache(batch.inputs)
    torch.testing.assert_close(t.outputs, logits)
    assert set(t.cache) == hook_names(model)
    for name in ("blocks.1.attn.hook_pattern", "blocks.0.mlp.hook_post", "ln_final.hook_scale"):
        torch.testing.assert_close(t.cache[name], cache[name])
    assert torch.equal(t.at_answers(t.outputs), t.outputs[:, 5:])
    assert not any(x.requires_grad for x in (t.outputs, *t.cache.values()))
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_trace_reads_only_what_is_required():
    model, batch = build(), TASK.sample(3, seed=1)
    t = pl.trace(model, batch, ["blocks.*.attn.hook_pattern"])
    assert set(t.cache) == {f"blocks.{i}.attn.hook_pattern" for i in range(2)}
    with pytest.raises(ValueError, match="'generated'"):
        t.generated  # noqa: B018
    with pytest.raises(ValueError, match="'outputs'"):
        pl.trace(model, batch, ["generated"]).outputs  # noqa: B018


def test_batches_are_weighted_by_their_prompts():
    model, batch = build(), TASK.sample(20, seed=2)
    metrics = [pl.metrics.loss, pl.metrics.accuracy, pl.metrics.position_accuracy, pl.metrics.collapse]
    whole, parts = pl.measure(model, batch, metrics), pl.measure(model, [batch[:3], batch[3:]], metrics)
    each = pl.measure(model, (b for b in (batch[:3], batch[3:])), metrics, reduce=None)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], msg=name)
        torch.testing.assert_close(whole[name], each[name].mean(0), msg=name)
    assert each["loss"].shape == (20,) and each["position_accuracy"].shape == (20, 5)


def test_missing_answer_positions_are_left_out_of_the_mean():
    def ragged(t):
        return torch.tensor([[1.0, float("nan")], [0.0, 1.0]])

    assert pl.measure(build(), TASK.sample(2, seed=0), [ragged])["ragged"].tolist() == [0.5, 1.0]


def test_measure_and_trace_raise_for_invalid_arguments(annotations_unchecked):
    model, batch = build(), TASK.sample(4, seed=2)
    with pytest.raises(ValueError, match="no batch"):
        pl.measure(model, [], [pl.metrics.loss])
    with pytest.raises(ValueError, match="reduce"):
        pl.measure(model, batch, [pl.metrics.loss], reduce="sum")
    with pytest.raises(ValueError, match="one number a batch"):
        pl.measure(model, [batch, batch], [pl.metrics.attention_progress_global])
    with pytest.raises(TypeError, match="no TransformerLens hooks"):
        pl.trace(torch.nn.Linear(2, 2), batch)


def test_function_without_requires_gets_a_full_trace():
    def norm(t):
        assert set(t.cache) == hook_names(model) and t.generated.shape == (4, 5) and t.outputs.shape == (4, 10, 8)
        return t.cache["blocks.0.hook_resid_mid"].norm(dim=-1).mean(-1)

    model, batch = build(), TASK.sample(4, seed=2)
    got = pl.measure(model, batch, [norm, pl.metrics.loss])
    _, cache = model.run_with_cache(batch.inputs)
    torch.testing.assert_close(got["norm"], cache["blocks.0.hook_resid_mid"].norm(dim=-1).mean())


def test_unknown_name_raises_with_the_nearest():
    model, batch = build(), TASK.sample(2, seed=0)
    with pytest.raises(ValueError, match="did you mean .*blocks.0.attn.hook_pattern"):
        pl.trace(model, batch, ["blocks.0.attn.hook_patern"])
    with pytest.raises(ValueError, match="did you mean 'repetition'"):
        pl.measure(model, batch, ["repetitoin"])
    with pytest.raises(ValueError, match="did you mean .*hook_resid_post"):
        pl.measure(model, batch, ["collapse@blocks.0.hook_resid_pots"])


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_decoding_uses_full_passes_under_a_user_hook(attention):
    model, batch = build(attention), TASK.sample(32, seed=3)
    plain = pl.greedy_decode(model, batch)
    fixed = torch.randn(1, 2, 10, 10, generator=torch.Generator().manual_seed(0)).tril()
    shapes = []

    def put(pattern, hook):  # knows nothing of absolute positions: only a full pass has as many queries as keys
        shapes.append(pattern.shape[-2:])
        query, key = pattern.shape[-2:]
        return fixed[:, :, :query, :key].expand_as(pattern)

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", put)]):
        got = pl.greedy_decode(model, batch)
        assert all(query == key for query, key in shapes)
        assert torch.equal(got, naive(model, batch.tokens[:, :6], 5))
    assert not torch.equal(got, plain)
    assert torch.equal(pl.greedy_decode(model, batch), plain)


@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("kind", ["scale", "fix", "both"])
def test_cached_decoding_equals_full_passes_under_interventions(attention, kind):
    model, batch = build(attention), TASK.sample(32, seed=4)
    plain = pl.greedy_decode(model, batch)
    scale = pl.ScaleAttention(TASK, factor=6.0)
    fix = pl.FixAttention(pl.trace(build(attention, seed=9), batch).pattern())
    values = {"scale": [scale], "fix": [fix], "both": [fix, scale]}[kind]
    with pl.intervene(model, *values):
        cached, full = pl.greedy_decode(model, batch), naive(model, batch.tokens[:, :6], 5)
    assert torch.equal(cached, full) and not torch.equal(cached, plain)


def test_trace_is_computed_when_it_returns():
    model, batch = build(), TASK.sample(8, seed=0)
    with pl.intervene(model, pl.ScaleAttention(TASK, factor=6.0)):
        inside = pl.trace(model, batch)
        value = pl.metrics.accuracy(inside)
    assert torch.equal(pl.metrics.accuracy(inside), value)
    assert not torch.allclose(inside.outputs, pl.trace(model, batch).outputs)


@torch.no_grad()
def test_language_model_metrics_equal_plain_hugging_face(neox):
    hf, bridge = neox
    own = naive(hf, PROMPTS, 7)
    out = hf(torch.cat([PROMPTS, own], 1)[:, :-1], output_hidden_states=True)
    batch = pl.Batch.prompts(PROMPTS, n_new=7)
    got = pl.measure(bridge, batch, [pl.metrics.collapse, pl.metrics.repetition, pl.metrics.entropy], reduce=None)
    t = pl.trace(bridge, batch)
    assert torch.equal(t.generated, own)
    torch.testing.assert_close(t.outputs, out.logits, rtol=1e-4, atol=1e-4)
    hidden = out.hidden_states[-1][:, 5:]
    for b in range(5):
        pairs = [F.cosine_similarity(hidden[b, i], hidden[b, j], dim=0) for i in range(7) for j in range(i)]
        assert float(got["collapse"][b]) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-5)
        row = own[b].tolist()
        assert float(got["repetition"][b]) == pytest.approx(sum(a == c for a, c in zip(row, row[1:])) / 6, abs=1e-6)
        p = torch.tensor([row.count(v) / 7 for v in set(row)])
        assert float(got["entropy"][b]) == pytest.approx(float((p * (1 / (p + 1e-6)).log()).sum()), abs=1e-5)
    assert batch.n_new == 7 and t.batch.tokens.shape == (5, 13) and not t.has_truth


@pytest.mark.parametrize("name", ["loss", "answer_loss", "accuracy", "tf_accuracy", "position_accuracy"])
def test_metrics_that_need_true_answers_raise_on_prompts(name, neox):
    with pytest.raises(ValueError, match=f"{name} needs true answers"):
        pl.measure(neox[1], pl.Batch.prompts(PROMPTS, n_new=2), [name])


def test_attention_progress_needs_an_optimal_map(neox):
    with pytest.raises(ValueError, match="optimal map"):
        pl.measure(neox[1], pl.Batch.prompts(PROMPTS, n_new=2), ["attention_progress"])


def test_invalid_prompts_raise():
    with pytest.raises(ValueError, match="n_new"):
        pl.Batch.prompts(torch.ones(1, 3, dtype=torch.long), n_new=0)
    batch = TASK.sample(2, seed=0)
    out = batch.answer_positions.clone()
    out[1] += 1
    with pytest.raises(ValueError, match="batch.split_by_length"):
        pl.Batch(batch.tokens, out.clamp(max=9), batch.loss_mask).prompt_len  # noqa: B018
