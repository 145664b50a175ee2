"""The functional metrics against loops, values computed by hand, and invariants."""

from math import isnan, log, sqrt

import pytest
import torch
from hypothesis import given, settings, strategies as st

from plateaulens.metrics import functional as metrics
from plateaulens.tasks import Copy, MovingWindowSum, Reverse

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def ragged(seed, n, length):
    """Valid masks whose rows have 1..length leading entries."""
    counts = torch.randint(1, length + 1, (n, 1), generator=rng(seed))
    return torch.arange(length) < counts


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / sqrt(sum(x * x for x in a)) / sqrt(sum(y * y for y in b))


@pytest.mark.parametrize("out, d", [(2, 3), (5, 4), (8, 16)])
def test_mean_pairwise_cosine_equals_a_loop_over_pairs(out, d):
    h = torch.randn(3, out, d, generator=rng(out))
    got, matrix = metrics.mean_pairwise_cosine(h), metrics.cosine_matrix(h)
    for b in range(3):
        rows = h[b].tolist()
        pairs = [cosine(rows[i], rows[j]) for i in range(out) for j in range(i)]
        assert float(got[b]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
        for i in range(out):
            for j in range(out):
                assert float(matrix[b, i, j]) == pytest.approx(cosine(rows[i], rows[j]), abs=1e-5)


COSINES = [
    ([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], 1.0),
    ([[1.0, 0.0], [0.0, 3.0]], 0.0),
    ([[1.0, 0.0], [-2.0, 0.0]], -1.0),
    ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 1 / 3),
]


@pytest.mark.parametrize("rows, expected", COSINES)
def test_mean_pairwise_cosine_by_hand(rows, expected):
    assert float(metrics.mean_pairwise_cosine(torch.tensor(rows))) == pytest.approx(expected, abs=1e-6)


def test_mean_pairwise_cosine_of_one_output_is_nan():
    assert isnan(float(metrics.mean_pairwise_cosine(torch.ones(1, 4))))


@quick
@given(seeds, st.integers(2, 9), st.integers(1, 7))
def test_cosine_invariants(seed, out, d):
    h = torch.randn(out, d, generator=rng(seed))
    value = float(metrics.mean_pairwise_cosine(h))
    assert -1 / (out - 1) - 1e-5 <= value <= 1 + 1e-5  # a sum of vectors has no negative length
    shuffled = h[torch.randperm(out, generator=rng(seed + 1))]
    assert float(metrics.mean_pairwise_cosine(shuffled)) == pytest.approx(value, abs=1e-5)
    scales = torch.rand(out, 1, generator=rng(seed + 2)) * 9 + 0.1
    assert float(metrics.mean_pairwise_cosine(h * scales)) == pytest.approx(value, abs=1e-5)
    matrix = metrics.cosine_matrix(h)
    torch.testing.assert_close(matrix, matrix.mT)


def test_cross_entropy_equals_a_loop():
    logits = torch.randn(4, 5, 7, generator=rng(0)) * 3
    targets = torch.randint(0, 7, (4, 5), generator=rng(1))
    valid = ragged(2, 4, 5)
    got = metrics.cross_entropy(logits, targets.masked_fill(~valid, -1), valid)
    for b in range(4):
        terms = []
        for s in range(5):
            if valid[b, s]:
                total = sum(2.718281828459045 ** float(x) for x in logits[b, s])
                terms.append(log(total) - float(logits[b, s, targets[b, s]]))
        assert float(got[b]) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_cross_entropy_of_uniform_logits_is_log_vocabulary():
    got = metrics.cross_entropy(torch.zeros(2, 3, 17), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3).bool())
    assert got.tolist() == pytest.approx([log(17)] * 2)


def test_accuracy_repetition_and_entropy_equal_loops():
    tokens = torch.randint(0, 4, (30, 8), generator=rng(0))
    answers = torch.randint(0, 4, (30, 8), generator=rng(1))
    valid = ragged(3, 30, 8)
    accuracy = metrics.accuracy(tokens, answers, valid)
    repetition = metrics.repetition_frequency(tokens, valid)
    entropy = metrics.sequence_entropy(tokens, valid)
    for b in range(30):
        n = int(valid[b].sum())
        got, true = tokens[b, :n].tolist(), answers[b, :n].tolist()
        assert float(accuracy[b]) == pytest.approx(sum(g == t for g, t in zip(got, true)) / n)
        if n > 1:
            equal = sum(a == b for a, b in zip(got, got[1:])) / (n - 1)
            assert float(repetition[b]) == pytest.approx(equal)
        else:
            assert isnan(float(repetition[b]))
        shares = [got.count(v) / n for v in range(4)]
        assert float(entropy[b]) == pytest.approx(sum(s * log(1 / (s + 1e-6)) for s in shares), abs=1e-5)


WORDS = [
    ([3, 3, 3, 3], 1.0, 0.0),
    ([0, 1, 2, 3], 0.0, log(4)),
    ([1, 1, 2, 2], 2 / 3, log(2)),
    ([1, 2, 1, 2], 0.0, log(2)),
]


@pytest.mark.parametrize("tokens, rho, entropy", WORDS)
def test_repetition_and_entropy_by_hand(tokens, rho, entropy):
    tokens = torch.tensor(tokens)
    valid = torch.ones(4).bool()
    assert float(metrics.repetition_frequency(tokens, valid)) == pytest.approx(rho)
    assert float(metrics.sequence_entropy(tokens, valid)) == pytest.approx(entropy, abs=1e-4)


def test_perfect_answers_score_one_and_missing_ones_nan():
    tokens = torch.randint(0, 9, (3, 5), generator=rng(0))
    assert metrics.accuracy(tokens, tokens, torch.ones(3, 5).bool()).tolist() == [1, 1, 1]
    assert metrics.accuracy(tokens, tokens, torch.zeros(3, 5).bool()).isnan().all()


@quick
@given(seeds, st.integers(2, 9), st.integers(2, 6))
def test_repetition_and_entropy_invariants(seed, length, vocabulary):
    tokens = torch.randint(0, vocabulary, (length,), generator=rng(seed))
    valid = torch.ones(length).bool()
    rho = float(metrics.repetition_frequency(tokens, valid))
    entropy = float(metrics.sequence_entropy(tokens, valid))
    assert 0 <= rho <= 1 and -1e-5 <= entropy <= log(min(vocabulary, length)) + 1e-5
    assert float(metrics.repetition_frequency(tokens.flip(0), valid)) == pytest.approx(rho)
    renamed = torch.randperm(vocabulary, generator=rng(seed))[tokens]
    assert float(metrics.repetition_frequency(renamed, valid)) == pytest.approx(rho)
    assert float(metrics.sequence_entropy(renamed, valid)) == pytest.approx(entropy, abs=1e-5)


def test_leading_axes_broadcast():
    hidden = torch.randn(2, 3, 5, 4, generator=rng(0))
    tokens = torch.randint(0, 4, (2, 3, 5), generator=rng(1))
    valid = torch.stack([ragged(2, 3, 5), ragged(3, 3, 5)])
    logits = torch.randn(2, 3, 5, 4, generator=rng(2))
    pattern = torch.randn(2, 3, 2, 6, 6, generator=rng(3))
    omega = torch.rand(1, 6, 6, generator=rng(4)) < 0.3
    whole = [
        metrics.mean_pairwise_cosine(hidden),
        metrics.cosine_matrix(hidden),
        metrics.accuracy(tokens, tokens.flip(-1), valid),
        metrics.repetition_frequency(tokens, valid),
        metrics.sequence_entropy(tokens, valid),
        metrics.cross_entropy(logits, tokens, valid),
        metrics.attention_progress(pattern, omega),
    ]
    for i in range(2):
        parts = [
            metrics.mean_pairwise_cosine(hidden[i]),
            metrics.cosine_matrix(hidden[i]),
            metrics.accuracy(tokens[i], tokens[i].flip(-1), valid[i]),
            metrics.repetition_frequency(tokens[i], valid[i]),
            metrics.sequence_entropy(tokens[i], valid[i]),
            metrics.cross_entropy(logits[i], tokens[i], valid[i]),
            metrics.attention_progress(pattern[i], omega),
        ]
        for one, part in zip(whole, parts, strict=True):
            torch.testing.assert_close(one[i], part, equal_nan=True)


def test_attention_progress_equals_a_loop():
    task = MovingWindowSum(n=4, k=2, p=5)
    (omega,) = task.optimal_attention()
    pattern = torch.randn(3, 2, 8, 8, generator=rng(0)).tril()
    got = metrics.attention_progress(pattern, omega)
    on_all = total_all = 0.0
    for b in range(3):
        on = total = 0.0
        for head in range(2):
            for query in range(4, 8):
                for key in range(query + 1):
                    mass = abs(float(pattern[b, head, query, key]))
                    total += mass
                    on += mass * (key == query - 4 or (query > 4 and key == query - 5))
        assert float(got[b]) == pytest.approx(on / total, abs=1e-5)
        on_all, total_all = on_all + on, total_all + total
    assert float(metrics.attention_progress_global(pattern, omega)) == pytest.approx(on_all / total_all, abs=1e-5)


@pytest.mark.parametrize("task, size", [(MovingWindowSum(), 31), (Copy(), 16), (Reverse(), 16)])
@pytest.mark.parametrize("of", [metrics.attention_progress, metrics.attention_progress_global])
def test_attention_progress_of_optimal_and_uniform_maps(task, size, of):
    (omega,) = task.optimal_attention()
    optimal = omega[None].float().expand(2, 3, -1, -1)
    flat = torch.ones(2, 3, 32, 32).tril()
    assert of(optimal, omega).mean().item() == pytest.approx(1.0)
    assert of(flat, omega).mean().item() == pytest.approx(size / 392)
    biased = flat * torch.where(omega[0], -10.0, 1.0)  # signs do not count
    assert of(biased, omega).mean().item() == pytest.approx(10 * size / (392 + 9 * size))


@quick
@given(seeds, st.floats(0.01, 100))
def test_attention_progress_invariants(seed, scale):
    pattern = torch.randn(2, 3, 5, 5, generator=rng(seed))
    omega = torch.rand(2, 5, 5, generator=rng(seed + 1)) < 0.4
    omega[:, 0, 0] = True
    value = metrics.attention_progress(pattern, omega)
    assert ((value >= 0) & (value <= 1 + 1e-6)).all()
    torch.testing.assert_close(metrics.attention_progress(-scale * pattern, omega), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics.attention_progress(pattern.flip(1), omega), value)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_ngram_metrics_equal_a_loop(n):
    tokens, valid = torch.randint(0, 3, (20, 6), generator=rng(0)), ragged(1, 20, 6)
    distinct, rep = metrics.distinct_ngrams(tokens, valid, n), metrics.ngram_repetition(tokens, valid, n)
    for b in range(20):
        row = tokens[b][valid[b]].tolist()
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        if not grams:
            assert isnan(distinct[b]) and isnan(rep[b])
        else:
            assert float(distinct[b]) == pytest.approx(len(set(grams)) / len(grams))
            assert float(rep[b]) == pytest.approx(1 - len(set(grams)) / len(grams), abs=1e-6)


def test_token_entropy_of_uniform_and_of_certain_predictions():
    uniform, certain = torch.zeros(3, 1, 50), torch.zeros(3, 1, 50)
    certain[..., 7] = 1000.0
    both, valid = torch.cat([uniform, certain], 1), torch.ones(3, 2, dtype=torch.bool)
    entropy = metrics.token_entropy(both)
    torch.testing.assert_close(entropy, torch.tensor([log(50), 0.0]).expand(3, 2))
    torch.testing.assert_close(metrics.mean_over_answer(entropy, valid), torch.full((3,), log(50) / 2))
    valid[:, 1] = False
    torch.testing.assert_close(metrics.mean_over_answer(entropy, valid), torch.full((3,), log(50)))


@pytest.mark.parametrize("chunk", [1, 120, 10**6])
def test_token_entropy_is_the_same_for_every_chunk_size(chunk, monkeypatch):
    monkeypatch.setattr("plateaulens.tracing.next_token.CHUNK_LOGITS", chunk)
    logits = torch.randn(3, 4, 50, generator=rng(0)) * 5
    logits[1, 2, :30] = -torch.inf
    expected = torch.special.entr(logits.double().softmax(-1)).sum(-1).float()
    torch.testing.assert_close(metrics.token_entropy(logits), expected, rtol=1e-6, atol=1e-6)


def test_anisotropy_equals_a_loop_over_other_examples():
    h = torch.randn(2, 4, 3, 5, generator=rng(0)) + 1.0
    got, centered = metrics.anisotropy(h), metrics.centered_anisotropy(h)
    for m in range(2):
        for values, x in ((got[m], h[m]), (centered[m], h[m] - h[m].reshape(-1, 5).mean(0))):
            for b in range(4):
                others = [x[c, j].tolist() for c in range(4) if c != b for j in range(3)]
                pairs = [cosine(x[b, i].tolist(), other) for i in range(3) for other in others]
                assert float(values[b]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_centering_removes_a_common_direction():
    h = 0.1 * torch.randn(30, 4, 64, generator=rng(0)) + torch.randn(64, generator=rng(1))
    assert (metrics.anisotropy(h) > 0.95).all() and metrics.centered_anisotropy(h).mean().abs() < 0.05
    assert metrics.anisotropy(h[:1]).isnan().all()
