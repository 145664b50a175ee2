"""The named metrics and `measure` against loops written from the definitions."""

from dataclasses import replace
from itertools import combinations
from math import exp, log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import plateaulens as pl
from plateaulens.metrics import functional as metrics, measuring as measuring
from plateaulens.metrics.named import STATE_METRICS


def rng(seed):
    return torch.Generator().manual_seed(seed)


def build(task, attention="linear", **fields):
    sizes = dict(d_model=16, n_layers=2, n_heads=2, init_scale=8.0) | fields
    return pl.Transformer(pl.ModelConfig.for_task(task, attention=attention, **sizes))


def everywhere(layers):
    names = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_resid_post")
    return [f"blocks.{i}.{name}" for i in range(layers) for name in names] + ["unembed.hook_in"]


@torch.no_grad()
def states(model, batch):
    logits, cache = model.run_with_cache(batch.inputs)
    return logits, {**cache, "unembed.hook_in": cache["ln_final.hook_normalized"] * model.ln_final.w + model.ln_final.b}


def same(got, expected, what=""):
    np.testing.assert_allclose(np.array(got, float), np.array(expected, float), rtol=5e-4, atol=1e-5, err_msg=what)


def cosines(rows, pairs):
    unit = [[x / sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    values = [sum(x * y for x, y in zip(unit[i], unit[j])) for i, j in pairs]
    return np.mean(values) if values else np.nan


def singular(rows):
    x = np.array(rows)
    return np.sqrt(np.linalg.eigvalsh(x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x).clip(1e-30))


LOOPS = {
    "collapse": lambda rows: cosines(rows, combinations(range(len(rows)), 2)),
    "norm": lambda rows: np.mean([sqrt(sum(x * x for x in row)) for row in rows]),
    "stable_rank": lambda rows: sum(x * x for row in rows for x in row) / max(singular(rows)) ** 2,
    "effective_rank": lambda rows: exp(-sum(p * log(p) for p in singular(rows) / sum(singular(rows)))),
    "participation_ratio": lambda rows: (v := np.linalg.eigvalsh(np.cov(np.transpose(rows)))).sum() ** 2 / (v @ v),
}
GEOMETRY = [metrics.mean_norm, metrics.stable_rank, metrics.effective_rank, metrics.participation_ratio]


@pytest.mark.parametrize("out, d", [(2, 3), (5, 4), (4, 16), (6, 6)])
@pytest.mark.parametrize("metric", GEOMETRY)
def test_geometry_metrics_broadcast_over_leading_axes(metric, out, d):
    hidden, loop = torch.randn(2, 3, out, d, generator=rng(out)) + 0.5, LOOPS[metric.__name__.removeprefix("mean_")]
    same(metric(hidden), [[loop(rows) for rows in some] for some in hidden.tolist()])
    same(metric(hidden[1, 2]), loop(hidden[1, 2].tolist()))


def test_geometry_metrics_by_hand_under_scaling_and_rotation():
    known = [  # norm, stable rank, effective rank, participation ratio
        ([[1, 0.5, 2, -1], [-2, -1, -4, 2], [3, 1.5, 6, -3]], [5, 1, 1, 1]),
        (3 * np.eye(5, 8), [3, 5, 5, 4]),  # once centered, five orthonormal states span four directions equally
        ([[2, 0], [0, 1]], [1.5, 1.25, exp(log(3) - 2 / 3 * log(2)), 1]),
    ]
    for rows, (norm, *ranks) in known:
        x = torch.tensor(rows).float()
        turn = torch.linalg.qr(torch.randn(2 * x.shape[1:], generator=rng(1)))[0]
        same([metric(x) for metric in GEOMETRY], [norm, *ranks])
        for other, scale in ((x * 1e-3, 1e-3), (x * -1e3, 1e3), (x @ turn, 1), (x.flip(0), 1)):
            same([metric(other) for metric in GEOMETRY], [norm * scale, *ranks])


def test_mean_cosine_of_marked_pairs_equals_a_loop():
    hidden, marked = torch.randn(2, 3, 5, 4, generator=rng(0)), torch.rand(5, 5, generator=rng(1)) < 0.4
    pairs = marked.nonzero().tolist()
    same(metrics.mean_cosine_of(hidden, marked), [[cosines(h, pairs) for h in some] for some in hidden.tolist()])
    assert metrics.mean_cosine_of(hidden, torch.zeros(5, 5).bool()).isnan().all()


def test_softmax_pattern_ignores_scores_above_the_diagonal():
    scores, later = 3 * torch.randn(2, 3, 2, 5, 5, generator=rng(0)), torch.ones(5, 5).bool().triu(1)
    got = metrics.softmax_pattern(scores.tril())
    assert torch.equal(got, metrics.softmax_pattern(scores.masked_fill(later, float("-inf"))))
    for *where, query in np.ndindex(2, 3, 2, 5):
        weights = [exp(s) for s in scores[*where, query].tolist()[: query + 1]]
        same(got[*where, query], [w / sum(weights) for w in weights] + [0] * (4 - query))


def log_prob(rows, answer):
    return sum(row[token] - log(sum(map(exp, row))) for row, token in zip(rows, answer))


def test_metrics_of_unequal_answers_equal_loops():
    logits, tokens = 3 * torch.randn(2, 20, 6, 5, generator=rng(0)), torch.randint(2, 8, (2, 20, 6), generator=rng(1))
    answers, counts = torch.randint(0, 5, (2, 20, 6), generator=rng(2)), torch.randint(1, 7, (2, 20), generator=rng(3))
    valid = torch.arange(6) < counts[..., None]
    log_p = metrics.sequence_log_prob(logits, answers.masked_fill(~valid, -1), valid)
    share, right = metrics.first_share(tokens, valid), metrics.count_check(tokens, answers, range(3, 7))
    for i in np.ndindex(2, 20):
        said, true = tokens[i].tolist(), answers[i].tolist()
        same(log_p[i], log_prob(logits[i].tolist(), true[: counts[i]]))
        same(share[i], said[: counts[i]].count(said[0]) / int(counts[i]))
        same(right[i], np.mean([said.count(v) == true.count(v) for v in range(3, 7)]))
    assert metrics.first_share(tokens, torch.zeros_like(valid)).isnan().all()
    same(metrics.count_check(torch.tensor([3, 3, 3]), torch.tensor([3, 4, 5]), range(3, 7)), 1 / 4)


SMALL_MIX, ALL = pl.tasks.WindowMix(n=6, p=5, mix=((1, 1, 2), (2, 3, 5))), [range(16)]
TABLE = {  # the paper's parts, the groups that form pairs, and how many pairs these are
    **{task: ([[0], range(1, 16)], [range(1, 16)], 105) for task in (pl.tasks.MovingWindowSum(), pl.tasks.PrefixSum())},
    pl.tasks.Repeat(k=1): (ALL, [range(1, 16)], 105),
    pl.tasks.Repeat(k=2): ([range(8), range(8, 16)], [range(1, 8), range(9, 16)], 42),
    pl.tasks.Repeat(k=4): ([range(i, i + 4) for i in (0, 4, 8, 12)], [range(i, i + 3) for i in (1, 5, 9, 13)], 12),
    pl.tasks.Addition(): ([[4], range(4)], [range(4)], 6),
    **{task: (ALL, ALL, 120) for task in (pl.tasks.Copy(), pl.tasks.Permutation(), pl.tasks.Histogram())},
    pl.tasks.WindowMix(): ([range(4), range(4, 9), range(9, 13)], [range(4, 13)], 36),
    SMALL_MIX: ([range(2), range(2, 5)], [range(2, 5)], 3),
}


@pytest.mark.parametrize("task", TABLE, ids=repr)
def test_named_metrics_equal_loops(task):
    (parts, groups, count), sites = TABLE[task], everywhere(2)
    model, batch, start, n = build(task), task.sample(3, seed=1), task.prompt_len, task.n_out
    logits, cache = states(model, batch)
    said, true = pl.greedy_decode(model, batch).tolist(), batch.tokens[:, start:].tolist()
    metrics = ["sequence_log_prob", "alpha_1", "alpha_1_halves", "count_check", "part_accuracy", "part_collapse"]
    got = pl.measure(model, batch, [*metrics, "collapse", *(f"{name}@*" for name in LOOPS)], reduce=None)
    pairs, half = [pair for group in groups for pair in combinations(group, 2)], (n + 1) // 2
    charged = [[(i, j) for i in part for j in range(i + 1, n)] for part in parts]  # by the earlier output
    assert len(pairs) == count and (task != pl.tasks.WindowMix() or [*map(len, charged)] == [42, 30, 6])
    values = range(17, 33) if task == pl.tasks.Permutation() else task.answer_values
    for b, rows in enumerate(logits[:, start - 1 :].tolist()):
        at = {site: cache[site][b, start - 1 :].tolist() for site in sites}
        expected = {
            "sequence_log_prob": log_prob(rows, true[b]),
            "alpha_1": said[b].count(said[b][0]) / n,
            "alpha_1_halves": [h.count(h[0]) / len(h) for h in (said[b][:half], said[b][half:])],
            "count_check": np.mean([said[b].count(v) == true[b].count(v) for v in values]),
            "part_accuracy": [np.mean([said[b][i] == true[b][i] for i in part]) for part in parts],
            "part_collapse": [cosines(at[sites[-1]], some) for some in charged],
            "collapse": cosines(at[sites[-1]], pairs),
            **{f"{k}@{s}": np.mean([f([at[s][i] for i in g]) for g in groups]) for k, f in LOOPS.items() for s in at},
        }
        assert list(expected) == list(got)
        for name, value in expected.items():
            same(got[name][b], value, name)


def share(pattern, keys):
    """|A| on the keys of each query over all |A| of these queries; heads are summed."""
    rows = [(head, query) for head in range(len(pattern)) for query in keys]
    on = sum(abs(float(pattern[h, q, k])) for h, q in rows for k in keys[q])
    return on / sum(abs(float(pattern[h, q, k])) for h, q in rows for k in range(q + 1))


@pytest.mark.parametrize("attention, layers", [("linear", 2), ("softmax", 2), ("linear", 3), ("softmax", 3)])
def test_attention_progress_on_both_maps_of_the_permutation(attention, layers):
    n, task, low, high, hooks = (
        4,
        pl.tasks.Permutation(n=4),
        layers - 2,
        layers - 1,
        ("hook_pattern", "hook_attn_scores"),
    )
    model, batch = build(task, attention, n_layers=layers, init_scale=4.0), task.sample(6, seed=3)
    names = [f"attention_progress@{i}{route}" for route in ("", ":alternative") for i in (low, high)]
    got = pl.measure(model, batch, [*names, "attention_progress", "softmax_progress", "attention_sink"], reduce=None)
    for b, tokens in enumerate(batch.tokens.tolist()):
        patterns, scores = ([states(model, batch)[1][f"blocks.{i}.attn.{h}"][b] for i in range(layers)] for h in hooks)
        look_up = {2 * n + 1 + r: [n + 1 + r] for r in range(n)}  # the answer, at the number of the permutation
        fetch = {2 * n + 1 + r: [tokens[n + 1 + r] - 1] for r in range(n)}  # the answer, at the value that it names
        early = {n + 1 + r: [tokens[n + 1 + r] - 1] for r in range(n)}  # that number, at the value that it names
        routes = [(low, look_up), (high, fetch), (low, early), (high, look_up)]
        same([got[name][b] for name in names], [share(patterns[i], keys) for i, keys in routes])
        same(got["attention_progress"][b], np.mean([share(patterns[i], keys) for i, keys in routes[:2]]))
        soft = [share(metrics.softmax_pattern(scores[i]), keys) for i, keys in routes[:2]]
        same(got["softmax_progress"][b], np.mean(soft))
        sink = {query: [2 * n, 2 * n + 1] for query in look_up}
        same(got["attention_sink"][b], np.mean([share(pattern, sink) for pattern in patterns]))
    assert torch.allclose(got["softmax_progress"], got["attention_progress"]) == (attention == "softmax")


def test_only_the_first_layer_of_the_histogram_has_a_map():
    task = pl.tasks.Histogram(n=5, max_value=3)
    model, batch = build(task), task.sample(4, seed=0)
    pattern = states(model, batch)[1]["blocks.0.attn.hook_pattern"]
    for value in pl.measure(model, batch, ["attention_progress", "attention_progress@0"], reduce=None).values():
        same(value, [share(pattern[b], {5 + r: [r] for r in range(5)}) for b in range(4)])


REFUSED = [
    ("alpah_1", "unknown metric .* did you mean 'alpha_1'"),
    ("nrom@*", "did you mean 'norm'"),
    ("norm@blocks.0.hook_resid_pots", "unknown hook .* did you mean .*blocks.0.hook_resid_post"),
    ("attention_progress@7", "did you mean .*blocks.1.attn.hook_pattern"),
    ("attention_progress@first", "did you mean 'attention_progress@0'"),
    ("attention_progress@0:alternativ", "unknown route .* did you mean 'alternative'"),
    ("attention_progress@0:alternative", "needs a task with an alternative map"),
    ("attention_progress@1", r"no optimal map for layer 1, only for \[0\]"),
    *((f, f"{f} needs true answers") for f in ("sequence_log_prob", "count_check", "part_accuracy", "part_collapse")),
]


@pytest.mark.parametrize("name, message", REFUSED)
def test_invalid_metrics_raise_one_clear_error(name, message, neox):
    task, prompts = pl.tasks.Histogram(n=4), pl.Batch.prompts(torch.randint(0, 50, (2, 4), generator=rng(0)), n_new=3)
    model, batch = (neox[1], prompts) if "true answers" in message else (build(task), task.sample(2, seed=0))
    with pytest.raises(ValueError, match=message) as caught:
        pl.measure(model, batch, [name])
    assert caught.value.__context__ is None and "\n" not in str(caught.value)


def test_metric_reads_only_what_it_requires(monkeypatch):
    task, asked = pl.tasks.Permutation(n=4), []
    model, batch = build(task), task.sample(3, seed=0)
    monkeypatch.setattr(measuring, "trace", lambda m, b, requires: asked.append(requires) or pl.trace(m, b, requires))
    metrics = [*pl.metrics.METRICS, "norm@blocks.0.hook_mlp_out", "attention_progress@1:alternative"]
    got = pl.measure(model, batch, metrics, reduce=None)
    decoded = "accuracy exact_match position_accuracy part_accuracy repetition".split()
    decoded += "entropy alpha_1 alpha_1_halves count_check".split()
    for name in metrics:
        same(pl.measure(model, batch, [name], reduce=None)[name], got[name])
        assert asked[-1] == list(measuring.named_metric(name).requires) and ("generated" in asked[-1]) == (
            name in decoded
        )
    assert set(asked[0]) == {name for requires in asked[1:] for name in requires}
    wide = {"position_accuracy": (3, 4), "alpha_1_halves": (3, 2), "part_accuracy": (3, 1), "part_collapse": (3, 1)}
    shapes = {name: (3,) for name in metrics} | wide | {"attention_progress_global": ()}
    assert {name: value.shape for name, value in got.items()} == shapes


WATCH = ["loss", "norm@*", "stable_rank@blocks.0.hook_resid_post", "part_accuracy", "part_collapse", "collapse"]
WATCH += ["count_check", "sequence_log_prob", "alpha_1_halves", "attention_progress@0", "softmax_progress"]
DEEP = [pl.tasks.Permutation(n=4), pl.tasks.Histogram(n=4, max_value=3)]
FLAT = [SMALL_MIX, pl.tasks.PrefixSum(n=5, p=7), pl.tasks.Addition(n=2), pl.tasks.Repeat(n=4, p=5, k=2)]


@pytest.mark.parametrize("task", DEEP + FLAT, ids=repr)
def test_runs_record_default_metrics_and_finished_runs_stay(task, tmp_path):
    layers, eval_batch = 2 if task in DEEP else 1, task.sample(8, seed=1)
    training = pl.train(build(task, n_layers=layers), task, pl.TrainConfig(steps=3, batch_size=8, lr=1e-2))
    run = pl.record(training, tmp_path / "run", eval_batch, WATCH, every=1, save_every=2, progress=False)
    table, columns = run.metrics, [WATCH[0], *(f"norm@{site}" for site in everywhere(layers)), *WATCH[2:]]
    assert [*table] == [*columns, "train_loss"] and [*table.index] == [0, 1, 2, 3] and table["loss"].nunique() == 4
    for name, value in pl.measure(run.model(3), eval_batch, WATCH).items():
        same(table[name][3], value.tolist(), name)
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    assert pl.resume(run.path, progress=False).metrics.equals(table)
    assert before == {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def test_metrics_are_measured_once_and_name_clashes_raise():
    task = pl.tasks.MovingWindowSum(n=4, p=5)
    model, batch = build(task), task.sample(4, seed=0)
    metrics = ["loss", pl.metrics.loss, "norm@*", "norm@unembed.hook_in", "norm@blocks.*.hook_resid_post"]
    values = pl.measure(model, batch, metrics, reduce=None)
    assert len(values) == 10 and all(value.shape == (4,) for value in values.values())
    with pytest.raises(ValueError, match="two metrics are named '<lambda>'"):
        pl.measure(model, batch, [lambda t: torch.zeros(4), lambda t: torch.ones(4)])

    def loss(t):
        return torch.zeros(4)

    for both in ([loss, "loss"], ["loss", loss], ["loss", "loss", loss]):
        with pytest.raises(ValueError, match="two metrics are named 'loss'"):
            pl.measure(model, batch, both)


def test_globs_and_single_names_are_accepted():
    task = pl.tasks.MovingWindowSum(n=4, p=5)
    model, batch = build(task), task.sample(4, seed=0)
    after = [f"norm@blocks.{layer}.hook_resid_post" for layer in (0, 1)]
    for glob in ("[01]", "?", "*"):
        assert list(pl.measure(model, batch, f"norm@blocks.{glob}.hook_resid_post")) == after
    assert pl.measure(model, batch, "collapse") == pl.measure(model, batch, ["collapse"])
    with pytest.raises(ValueError, match="did you mean 'collapse'"):
        pl.measure(model, batch, "colapse")


def test_default_metrics_raise_without_defaults(neox):
    prompts = pl.Batch.prompts(torch.arange(12).view(2, 6), n_new=3)
    with pytest.raises(ValueError, match=r"these prompts .* metrics=\["):
        pl.metrics.default_metrics(prompts, neox[1])
    bare = replace(pl.tasks.MovingWindowSum(n=4, p=5).sample(2, seed=0), task=SimpleNamespace())
    with pytest.raises(ValueError, match=r"namespace\(\) .* metrics=\["):
        pl.metrics.default_metrics(bare, neox[1])


def test_residual_hooks_of_models_with_parallel_blocks(neox):
    prompts = pl.Batch.prompts(torch.arange(12).view(2, 6), n_new=3)
    names = [name.split("@")[1] for name in pl.measure(neox[1], prompts, ["norm@*"])]
    assert "blocks.0.hook_resid_pre" in names and "blocks.0.hook_resid_mid" not in names and len(names) == 7


@pytest.mark.parametrize("metric", ["collapse", "norm", "stable_rank", "effective_rank", "participation_ratio"])
def test_empty_collapse_group_gives_nan(metric):
    task = pl.tasks.WindowMix(n=4, p=5, mix=((1, 1, 4),))  # copies only: all of them are the partial solution
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))
    assert pl.measure(model, task.sample(3, seed=0), [f"{metric}@*"])[f"{metric}@unembed.hook_in"].isnan()


def test_half_precision_is_measured_in_float32():
    task = pl.tasks.Permutation(n=4)
    model = build(task).bfloat16()
    t = pl.trace(model, task.sample(8, seed=0))
    same_states = replace(
        t,
        cache={name: activation.float() for name, activation in t.cache.items()},
        _values={**t._values, "outputs": t.outputs.float()},
    )
    for function in measuring.resolve(model, [*pl.metrics.METRICS, *(f"{name}@*" for name in STATE_METRICS)]):
        torch.testing.assert_close(function(t), function(same_states))


def test_ranks_are_independent_of_scale():
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    for scale in (1e-12, 1.0, 1e10):
        torch.testing.assert_close(metrics.participation_ratio(states * scale), metrics.participation_ratio(states))


def test_hook_without_positions_raises():
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16, n_heads=2))
    with pytest.raises(ValueError, match="without positions on its second axis"):
        pl.measure(model, task.sample(3, seed=0), ["norm@blocks.0.attn.hook_pattern"])


def test_metric_may_return_a_plain_number():
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))

    def layers(t):
        return float(t.n_layers)

    assert pl.measure(model, task.sample(3, seed=0), [layers]) == {"layers": torch.tensor(1.0)}
