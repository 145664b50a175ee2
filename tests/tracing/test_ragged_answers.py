"""Tasks whose prompts and answers differ in length: decoding and metrics equal those of each example alone."""

from dataclasses import dataclass
from math import nan

import pytest
import torch
from hypothesis import given, settings, strategies as st

import plateaulens as pl
from helpers import ReverseRepeated
from plateaulens.hooks import call_hooks
from plateaulens.lm import generation as generating
from plateaulens.metrics import functional as metrics
from plateaulens.metrics.named import STATE_METRICS
from plateaulens.tracing import decoding

FINAL, RESID = "unembed.hook_in", "blocks.1.hook_resid_pre"
ONE_EXAMPLE = [metrics.mean_pairwise_cosine, metrics.mean_norm, metrics.stable_rank, metrics.effective_rank]
ONE_EXAMPLE += [metrics.participation_ratio]


TASKS = (ReverseRepeated(), ReverseRepeated(answer_only=True))


def build(attention="linear", task=TASKS[0], seed=0, **fields):
    sizes = dict(d_model=16, n_heads=2, n_layers=2, init_scale=10.0) | fields
    return pl.Transformer(pl.ModelConfig.for_task(task, attention=attention, seed=seed, **sizes))


@pytest.fixture(params=["linear", "softmax", "bidirectional", "tl", "neox"])
def model(request):
    if request.param == "bidirectional":
        return build("softmax", attention_dir="bidirectional")
    if request.param == "tl":
        return pl.to_tl(build("softmax"))
    return request.getfixturevalue("neox")[1] if request.param == "neox" else build(request.param)


def logits(model, tokens):
    with torch.no_grad():
        return decoding.logits_of(model(tokens))


def alone(model, batch):
    """Each example by itself, the whole prefix again for every token."""
    said = torch.full_like(batch.answer_positions, -1)
    for i, out in enumerate(batch.answer_positions.tolist()):
        row = batch.tokens[i : i + 1, : out[0] + 1]
        for j in range(sum(position >= 0 for position in out)):
            row = torch.cat([row, logits(model, row)[:, -1].argmax(-1, keepdim=True)], 1)
            said[i, j] = row[0, -1]
    return said


def test_task_has_prompts_and_answers_of_many_lengths():
    batch = TASKS[1].sample(64, seed=0)
    assert (
        set(batch.answer_positions[:, 0].tolist()) == {1, 2, 3, 4, 5, 6}
        and (batch.answer_positions >= 0).sum(1).min() == 1
    )
    words = [TASKS[0].decode(tokens) for tokens in TASKS[0].sample(4, seed=0).tokens]
    assert words == ["ddd=ddd<EOS>", "bcad=da<EOS>", "aacbcd=<EOS>", "d=ddddd<EOS>"]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_decoding_of_unequal_prompts_is_independent_of_the_batch(model, task):
    batch = task.sample(40, seed=1)
    expected, got = alone(model, batch), pl.greedy_decode(model, batch)
    assert torch.equal(got, expected) and torch.equal(got < 0, batch.answer_positions < 0) and len(got.unique()) > 3
    for rows in (slice(3, 4), slice(0, 7), torch.tensor([9, 2])):
        assert torch.equal(pl.greedy_decode(model, batch[rows]), expected[rows])
    for part in batch.split_by_length():
        assert torch.equal(pl.greedy_decode(model, part), alone(model, part))


def test_example_without_answer_gives_minus_one():
    model, batch = build(), TASKS[0].sample(5, seed=1)
    out = batch.answer_positions.clone()
    out[2] = -1
    got = pl.greedy_decode(model, pl.Batch(batch.tokens, out, batch.loss_mask, batch.task))
    assert (got[2] == -1).all() and torch.equal(got[[0, 1, 3, 4]], pl.greedy_decode(model, batch)[[0, 1, 3, 4]])


def test_greedy_decode_equals_generate_on_language_model_prompts(neox):
    batch = pl.Batch.prompts([[3], [1, 2, 3, 4, 5], [7, 8]], n_new=4)
    assert torch.equal(pl.greedy_decode(neox[1], batch), generating.generate(neox[1], batch).tokens)


def calls(model, batch):
    seen = []
    with call_hooks(model, lambda kwargs: None, lambda tokens: seen.append(tokens.shape[1])):
        pl.greedy_decode(model, batch)
    return seen


def test_decoding_makes_few_calls_within_the_context():
    model, batch = build(), TASKS[0].sample(40, seed=1)
    assert calls(model, batch) == [1] * 7  # inputs of 1 to 6 letters; the last EOS is the 8th token
    assert batch.answer_positions[:, 0].max() + 1 + TASKS[0].n_out > model.cfg.n_ctx
    fixed = pl.tasks.MovingWindowSum(n=4, p=5)
    assert calls(build(task=fixed), fixed.sample(3, seed=0)) == [5, 1, 1, 1]


CHANGES = {
    "steer": pl.Steer(RESID, torch.linspace(-9, 9, 16), positions=[3, 5]),
    "uniform head": pl.AblateHeads([(1, 0)], "uniform"),
    "mean": pl.Ablate(RESID, "mean", positions=[4]),
    "patch": pl.Patch(RESID, torch.arange(16.0).expand(7, 16), positions=[2, 6]),
}


@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("name", [*CHANGES, "pattern"])
def test_interventions_act_at_absolute_positions(attention, name):
    model, batch = build(attention), TASKS[0].sample(40, seed=2)
    donor = pl.trace(build(attention, seed=9), batch, ["blocks.*.attn.hook_pattern"])
    change = CHANGES[name] if name in CHANGES else pl.FixAttention(donor.pattern())
    plain = pl.greedy_decode(model, batch)
    with pl.intervene(model, change):
        cached = pl.greedy_decode(model, batch)
        raw = [("hook_embed", lambda tensor, hook: None)]
        with model.hooks(fwd_hooks=raw):
            assert torch.equal(pl.greedy_decode(model, batch), cached)  # every step a full pass
        if name not in ("mean", "pattern"):  # which belong to all examples that are run together
            assert torch.equal(cached, alone(model, batch))
    assert not torch.equal(cached, plain)
    assert torch.equal(pl.greedy_decode(model, batch), plain)


def test_pattern_of_unequal_prompts_holds_their_shared_part():
    model, batch = build(), TASKS[0].sample(40, seed=3)
    pattern = pl.trace(build(seed=9), batch, ["blocks.*.attn.hook_pattern"]).pattern()
    assert torch.equal(pattern.prompts, batch.tokens[:, :1])
    with pytest.raises(ValueError, match="other prompts"), pl.intervene(model, pl.FixAttention(pattern)):
        pl.greedy_decode(model, TASKS[0].sample(40, seed=4))


def rows_of(batch, x):
    """The rows that answer, example by example: only those that exist."""
    return [[row[p] for p in out if p >= 0] for row, out in zip(x, batch.answer_positions.tolist())]


@pytest.mark.parametrize("task", TASKS, ids=repr)
@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_metrics_of_unequal_answers_are_independent_of_the_batch(task, attention):
    model, batch = build(attention, task), task.sample(30, seed=5)
    metrics = [name for name in pl.metrics.METRICS if "progress" not in name]
    metrics += [f"{name}@{site}" for name in STATE_METRICS for site in (FINAL, "blocks.0.hook_attn_out")]
    metrics += ["distinct@2", "rep@1"]
    got = pl.measure(model, batch, metrics, reduce=None)
    not_alone = ("anisotropy", "centered_anisotropy", "alpha_1_halves")  # of other examples; of the longest answer
    for i, out in enumerate(batch.answer_positions.tolist()):
        size, end = sum(position >= 0 for position in out), max(out) + 2
        cut = (
            batch.tokens[i : i + 1, :end],
            batch.answer_positions[i : i + 1, :size],
            batch.loss_mask[i : i + 1, : end - 1],
        )
        for name, (value,) in pl.measure(model, pl.Batch(*cut, Short(size=size)), metrics, reduce=None).items():
            if name.partition("@")[0] not in not_alone:
                mine = got[name][i]
                if name == "position_accuracy":
                    assert mine[size:].isnan().all()
                    mine = mine[:size]
                torch.testing.assert_close(mine, value, rtol=1e-3, atol=2e-5, equal_nan=True, msg=f"{name} of {i}")


@dataclass(frozen=True, kw_only=True)
class Short(pl.tasks.Task):
    """The task of one example, as far as measurements ask."""

    size: int

    @property
    def n_out(self):
        return self.size

    @property
    def d_vocab(self):
        return TASKS[0].d_vocab


def test_anisotropy_of_unequal_answers_equals_a_loop():
    model, batch = build(), TASKS[1].sample(9, seed=6)
    got = pl.measure(model, batch, [f"anisotropy@{FINAL}", f"centered_anisotropy@{FINAL}"], reduce=None)
    states = rows_of(batch, pl.trace(model, batch, [FINAL]).cache[FINAL])
    mean = torch.stack([row for rows in states for row in rows]).mean(0)
    for value, center in zip(got.values(), (0.0, mean)):
        for i, rows in enumerate(states):
            others = [row for j, some in enumerate(states) if j != i for row in some]
            pairs = [torch.cosine_similarity(a - center, b - center, dim=0) for a in rows for b in others]
            torch.testing.assert_close(value[i], torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)


def test_attention_sink_is_the_end_of_each_prompt():
    model, batch = build("softmax"), TASKS[0].sample(20, seed=7)
    got = pl.measure(model, batch, ["attention_sink"], reduce=None)["attention_sink"]
    maps = pl.trace(model, batch, ["blocks.*.attn.hook_pattern"]).pattern()
    for i, out in enumerate(batch.answer_positions.tolist()):
        keys = [k for k in (out[0] - 1, out[0]) if k >= 0]
        on = sum(maps[layer][i, :, q, keys].sum() for layer in (0, 1) for q in out if q >= 0)
        torch.testing.assert_close(got[i], on / (4 * sum(q >= 0 for q in out)))


def test_exact_match_is_zero_or_one():
    answers = torch.tensor([[1, 2, -1], [3, -1, -1], [0, 1, 2], [-1, -1, -1]])
    said = torch.tensor([[1, 2, 9], [3, 3, 3], [0, 1, 1], [0, 0, 0]])
    assert metrics.exact_match(said, answers, answers >= 0).nan_to_num(-7).tolist() == [1, 1, 0, -7]
    model, batch = build(), TASKS[0].sample(30, seed=0)
    forced, true = (rows_of(batch, x) for x in (logits(model, batch.inputs).argmax(-1), batch.targets))
    got = pl.measure(model, batch, ["exact_match", "tf_exact_match"], reduce=None)
    assert got["tf_exact_match"].tolist() == [float(a == b) for a, b in zip(forced, true)]
    said = pl.greedy_decode(model, batch).tolist()
    assert got["exact_match"].tolist() == [float(a == b) for a, b in zip(said, batch.answers.tolist())]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9))
def test_missing_outputs_do_not_change_any_metric(seed, out, d):
    rng = torch.Generator().manual_seed(seed)
    hidden, valid = torch.randn(3, out, d, generator=rng), torch.rand(3, out, generator=rng) < 0.6
    hidden[~valid] = torch.tensor([nan, float("inf"), 1e30])[torch.randint(0, 3, (1,), generator=rng)]
    for metric in ONE_EXAMPLE:
        got = metric(hidden, valid)
        for value, states, exist in zip(got, hidden, valid):
            expected = metric(states[exist]) if exist.any() else torch.tensor(nan)
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5, equal_nan=True)
        full = torch.randn(3, out, d, generator=rng)
        assert torch.equal(metric(full, torch.ones_like(valid)).nan_to_num(-7), metric(full).nan_to_num(-7))


def test_too_short_answers_are_nan_and_left_out_of_the_mean():
    model, batch = build(task=TASKS[1]), TASKS[1].sample(30, seed=8)
    short, metrics = (
        (batch.answer_positions >= 0).sum(1) == 1,
        ["collapse", "repetition", f"participation_ratio@{FINAL}"],
    )
    each, mean = pl.measure(model, batch, metrics, reduce=None), pl.measure(model, batch, metrics)
    parts = pl.measure(model, [batch[:7], batch[7:]], metrics)
    assert 0 < short.sum() < 30
    for name, values in each.items():
        assert torch.equal(values.isnan(), short)
        torch.testing.assert_close(mean[name], values[~short].mean())
        torch.testing.assert_close(parts[name], mean[name])
    assert pl.measure(model, batch[short], metrics)["collapse"].isnan()


def test_other_nan_values_stay_in_the_mean():
    def broken(t):
        return torch.where(t.valid.all(1), nan, 1.0)

    def odd(t):
        return torch.where(t.valid.all(1), 1.0, nan)

    model, batch = build(), TASKS[0].sample(30, seed=8)
    got = pl.measure(model, batch, [broken, odd])
    assert got["broken"].isnan() and got["odd"] == 1
