"""The further tasks of arXiv 2506.13688 against plain Python written from the paper's tables."""

import itertools
import json
from collections import Counter
from math import comb, log, sqrt

import pytest
import torch

from plateaulens.tasks import (
    Addition,
    Histogram,
    Permutation,
    PrefixSum,
    Repeat,
    WindowMix,
    task_from_json,
    task_to_json,
)

LAYOUTS = {  # (width, first start, last start)
    "123_disjoint_454": [(1, 1, 4), (2, 5, 9), (3, 11, 14)],
    "124_stair_653": [(1, 1, 6), (2, 1, 5), (4, 1, 3)],
    "124_disjoint_444": [(1, 1, 4), (2, 5, 8), (4, 10, 13)],
    "124_disjoint_453": [(1, 1, 4), (2, 5, 9), (4, 11, 13)],
}
OTHER, NESTED = ((2, 1, 3), (1, 6, 7), (4, 2, 4)), ((2, 1, 3), (1, 6, 6), (4, 2, 3))
MIXES = [WindowMix(mix=name) for name in LAYOUTS] + [WindowMix(n=7, p=6, mix=OTHER), WindowMix(n=16, mix=((16, 1, 1),))]
PREFIXES = [PrefixSum(**v) for v in (dict(), dict(n=5, p=7), dict(n=9, p=4), dict(n=1, p=3))]
NO_REPEATS = [PrefixSum(no_repeat=True, **v) for v in (dict(), dict(n=4, p=5), dict(n=3, p=8))]
ADDITIONS = [Addition(n=n, reverse=reverse) for n in (4, 1, 3, 18) for reverse in (True, False)]
PERMUTATIONS = [Permutation(n=n, compose=c) for n in (16, 5, 2) for c in (1, 2, 3, 4)]
HISTOGRAMS = [Histogram(), Histogram(n=5, max_value=3), Histogram(n=3, max_value=9)]
REPEATS = [Repeat(k=k) for k in (1, 2, 4, 16)] + [Repeat(n=6, p=5, k=3), Repeat(n=5, p=3, k=5)]
ALL = MIXES + PREFIXES + NO_REPEATS + ADDITIONS + PERMUTATIONS + HISTOGRAMS + REPEATS

SMALL_ADDITIONS = [Addition(n=n, reverse=reverse) for n in (1, 2) for reverse in (True, False)]
SMALL_MIXES = [WindowMix(n=n, p=p, mix=mix) for n, p, mix in [(3, 4, ((3, 1, 1), (1, 2, 3))), (6, 3, NESTED)]]
SMALL_PREFIXES = [PrefixSum(n=n, p=p) for n, p in [(3, 3), (4, 5), (3, 4)]]
SMALL_NO_REPEATS = [PrefixSum(n=n, p=p, no_repeat=True) for n, p in [(4, 5), (2, 5), (2, 3), (3, 4)]]
SMALL_REPEATS = [Repeat(n=n, p=p, k=k) for n, p, k in [(4, 5, 2), (3, 3, 3), (3, 4, 1)]]
MAPPED = SMALL_ADDITIONS + SMALL_MIXES + SMALL_PREFIXES + SMALL_NO_REPEATS + SMALL_REPEATS  # one map is enough
SMALL = MAPPED + [Permutation(n=n, compose=c) for n in (2, 3) for c in (1, 2)]
SMALL += [Histogram(n=n, max_value=m) for n, m in [(3, 2), (2, 5)]]


def each(tasks):
    return pytest.mark.parametrize("task", tasks, ids=repr)


def windows(task):
    segments = LAYOUTS[task.mix] if isinstance(task.mix, str) else task.mix
    return [list(range(start, start + k)) for k, a, b in segments for start in range(a, b + 1)]


def answer(task, prompt):
    """The answer to a prompt, loop by loop."""
    n, x = task.n, prompt[: task.n]
    match task:
        case WindowMix():
            return [sum(x[i - 1] for i in window) % task.p for window in windows(task)]
        case PrefixSum():
            return [sum(x[: i + 1]) % task.p for i in range(n)]
        case Repeat():
            return [(x[0] + i * task.k // n) % task.p for i in range(n)]
        case Histogram():
            return [x.count(value) for value in x]
        case Addition():
            a, b = (int("".join(map(str, part))) for part in (x, prompt[n + 1 : 2 * n + 1]))
            digits = [int(c) for c in str(a + b).zfill(n + 1)]
            return digits[::-1] if task.reverse else digits
        case Permutation():
            pi, where = prompt[n + 1 : 2 * n + 1], list(range(n))
            for _ in range(task.compose):
                where = [pi[i] - 1 for i in where]
            return [x[i] for i in where]


def layout(task):
    """The tokens that can stand at each place of the prompt."""
    n = task.n
    match task:
        case Addition():
            digits = [range(10) if n > 1 else range(1, 10)] * n
            return [*digits, [10], *digits, [11]]
        case Permutation():
            return [*[range(n + 1, 2 * n + 1)] * n, [0], *[range(1, n + 1)] * n, [0]]
        case Histogram():
            return [*[range(1, task.max_value + 1)] * n, [0]]
    return [*[range(1, task.p)] * n, [task.p]]


def valid(task, prompt):
    """No zero is added, and nothing comes twice where nothing may."""
    n = task.n
    if isinstance(task, Addition):
        return any(prompt[:n]) and any(prompt[n + 1 : -1])
    if isinstance(task, Permutation):
        return len(set(prompt[n + 1 : -1])) == n
    return len(set(prompt[:n])) == n or not getattr(task, "no_repeat", False)


def every(task):
    """All prompts, each as likely as any other."""
    return [prompt for prompt in itertools.product(*layout(task)) if valid(task, prompt)]


def solved(task):
    """All sequences."""
    return [[*prompt, *answer(task, prompt)] for prompt in every(task)]


def entropy(items):
    counts = Counter(items)
    return -sum(c / counts.total() * log(c / counts.total()) for c in counts.values())


def uniform(counts, cells):
    """Chi-square within 6 standard deviations of its mean."""
    expected = counts.total() / cells
    chi2 = sum((c - expected) ** 2 / expected for c in counts.values()) + (cells - len(counts)) * expected
    return abs(chi2 - (cells - 1)) <= 6 * sqrt(2 * (cells - 1))


@each(ALL)
def test_prompts_and_answers_equal_a_loop(task):
    batch = task.sample(400, seed=3)
    rows, first = batch.tokens.tolist(), task.prompt_len
    assert all(valid(task, row[:first]) and row[first:] == answer(task, row[:first]) for row in rows)
    assert list(map(set, zip(*(row[:first] for row in rows)))) == list(map(set, layout(task)))
    assert set(batch.answers.unique().tolist()) <= set(task.answer_values)
    assert int(batch.tokens.max()) < task.d_vocab and batch.loss_mask.all()
    assert batch.answer_positions[0].tolist() == list(range(first - 1, first - 1 + task.n_out))


SHAPES = [  # prompt with separator, answers, vocabulary, targets
    (WindowMix(), 17, 13, 18, 29),
    (WindowMix(mix="124_stair_653"), 17, 14, 18, 30),
    (PrefixSum(), 17, 16, 18, 32),
    (Addition(), 10, 5, 12, 14),
    (Permutation(), 34, 16, 33, 49),
    (Histogram(), 17, 16, 17, 32),
    (Histogram(n=3, max_value=9), 4, 3, 10, 6),
    (Repeat(k=4), 17, 16, 18, 32),
]


@pytest.mark.parametrize("task, prompt, answers, vocabulary, targets", SHAPES)
def test_sizes_of_the_paper(task, prompt, answers, vocabulary, targets):
    assert (task.prompt_len, task.n_out, task.d_vocab, task.n_targets) == (prompt, answers, vocabulary, targets)
    assert task.sample(2, seed=0).tokens.shape == (2, targets + 1)


@each(ALL)
def test_sampling_is_pure(task):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = task.sample(64, seed=7), task.sample(64, seed=7), task.sample(64, seed=8)
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.tokens, other.tokens)
    assert torch.equal(task.sample(64, seed=torch.Generator().manual_seed(7)).tokens, one.tokens)
    assert torch.equal(before, torch.get_rng_state())


@each(SMALL)
def test_every_prompt_is_equally_likely(task):
    possible = every(task)
    tokens = task.sample(max(4000, 12 * len(possible)), seed=11).tokens
    counts = Counter(map(tuple, tokens[:, : task.prompt_len].tolist()))
    assert set(counts) == set(possible) and uniform(counts, len(possible))


@each([WindowMix(), PrefixSum(), Histogram(), Repeat(), Permutation(), Addition()])
def test_prompts_are_uniform_at_each_position(task):
    columns = zip(*task.sample(5000, seed=13).tokens.tolist())
    assert all(uniform(Counter(column), len(can_be)) for column, can_be in zip(columns, layout(task)))


def optimal(task, row):
    """The paper's table of (query, key) pairs, one set a layer, None where it has none."""
    n = task.n
    match task:
        case WindowMix():
            return [{(n + r, i - 1) for r, window in enumerate(windows(task)) for i in window}]
        case PrefixSum():
            return [{(n, 0)} | {(n + r, key) for r in range(1, n) for key in (r, n + r)}]
        case Repeat():
            return [{(n + r, 0) for r in range(n)}]
        case Histogram():
            return [{(n + r, r) for r in range(n)}, None]
        case Addition(reverse=True):
            rows = {0: [n - 1, 2 * n], n: [0, n + 1]}
            rows |= {o: [n - o - 1, n - o, 2 * n - o, 2 * n - o + 1] for o in range(1, n)}
            return [{(2 * n + 1 + o, key) for o, keys in rows.items() for key in keys}]
        case Addition():  # from the pair of the same place (the carry has the first) to the last pair
            starts = [0, *range(n)]
            return [{(2 * n + 1 + r, i + b) for r in range(n + 1) for i in range(starts[r], n) for b in (0, n + 1)}]
        case Permutation():
            layers, where = [], list(range(n))
            for _ in range(task.compose):
                layers.append({(2 * n + 1 + r, n + 1 + where[r]) for r in range(n)})
                where = [row[n + 1 + i] - 1 for i in where]
            return [*layers, {(2 * n + 1 + r, where[r]) for r in range(n)}]


def check_maps(task, maps, expected, s):
    assert len(maps) == len(expected)
    for omega, entries in zip(maps, expected):
        if entries is None:
            assert omega is None
            continue
        assert omega.dtype == torch.bool and omega.shape[1:] == (task.n_targets, task.n_targets)
        chosen = omega[s if len(omega) > 1 else 0]
        assert set(map(tuple, chosen.nonzero().tolist())) == entries and not chosen.triu(1).any()


@each(ALL)
def test_optimal_maps_equal_the_table(task):
    batch = task.sample(12, seed=2)
    maps = task.optimal_attention(batch)
    for s, row in enumerate(batch.tokens.tolist()):
        check_maps(task, maps, optimal(task, row), s)
    if not isinstance(task, Permutation):
        assert maps[0].tolist() == task.optimal_attention()[0].tolist() and len(maps[0]) == 1
        assert task.alternative_attention(batch) is None


@pytest.mark.parametrize("n", [16, 5, 2])
def test_alternative_maps_of_the_permutation(n):
    task = Permutation(n=n)
    batch = task.sample(12, seed=2)
    maps = task.alternative_attention(batch)
    for s, row in enumerate(batch.tokens.tolist()):
        fetch = {(q, row[q] - 1) for q in range(n + 1, 2 * n + 1)}
        check_maps(task, maps, [fetch, {(2 * n + 1 + r, n + 1 + r) for r in range(n)}], s)
    assert Permutation(n=n, compose=2).alternative_attention(batch) is None
    for route in (task.optimal_attention, task.alternative_attention):
        with pytest.raises(ValueError, match="pass batch="):
            route()


@pytest.mark.parametrize(
    "task, size, causal",
    [(PrefixSum(), 31, 392), (Addition(), 16, 60), (Histogram(), 16, 392), (Permutation(), 16, 664)],
)
def test_map_sizes_and_their_share_of_causal_entries(task, size, causal):
    batch = task.sample(3, seed=0)
    maps = [(omega, causal) for omega in task.optimal_attention(batch) if omega is not None]
    if isinstance(task, Permutation):
        maps += zip(task.alternative_attention(batch), (408, 664))
    for omega, entries in maps:
        assert all(int(m.sum()) == size and sum(int(q) + 1 for q in m.any(1).nonzero()) == entries for m in omega)


def outcomes(task, rows, leave_out=None):
    """For each output the answers that occur with the same attended tokens and query token."""
    (omega,) = task.optimal_attention()
    for r in range(task.n_out):
        query = task.prompt_len - 1 + r
        keys = [key for key in omega[0, query].nonzero().flatten().tolist() if key != query]
        for drop in [None] if leave_out is None else keys:
            seen = {}
            for row in rows:
                situation = (*(row[key] for key in keys if key != drop), row[query])
                seen.setdefault(situation, set()).add(row[query + 1])
            yield max(map(len, seen.values()))


@each(MAPPED + [PrefixSum(), WindowMix(), WindowMix(n=7, p=6, mix=OTHER), Addition(), Repeat(k=4)])
def test_attended_tokens_determine_the_answer(task):
    rows = solved(task) if task in MAPPED else task.sample(15_000, seed=6).tokens.tolist()
    assert set(outcomes(task, rows)) == {1}


@each([Addition(n=1, reverse=False), Addition(n=2, reverse=False), PrefixSum(n=4, p=5), *SMALL_MIXES])
def test_answers_need_every_attended_token(task):
    assert min(outcomes(task, solved(task), leave_out="each")) > 1


@each(PERMUTATIONS)
def test_permutation_maps_lead_to_the_answer(task):
    batch, n = task.sample(20, seed=9), task.n
    maps = task.optimal_attention(batch)
    for s, row in enumerate(batch.tokens.tolist()):
        for query in range(2 * n + 1, 3 * n + 1):
            keys = [int(m[s, query].nonzero()) for m in maps]
            follow = [n + row[key] for key in keys[:-2]] + [row[keys[-2]] - 1]
            assert keys[0] == query - n and keys[1:] == follow and row[keys[-1]] == row[query + 1]
            if task.compose == 1:
                fetch, read = task.alternative_attention(batch)
                (middle,) = read[s if len(read) > 1 else 0, query].nonzero()
                assert row[int(fetch[s, int(middle)].nonzero())] == row[query + 1]


def unknown(task, prompts):
    """Nats of the answers to a model that knows only the partial solution, by enumeration."""
    answers = [answer(task, prompt) for prompt in prompts]
    columns = list(zip(*answers))
    match task:
        case WindowMix():
            return sum(entropy(c) for c, window in zip(columns, windows(task)) if len(window) > 1)
        case PrefixSum(no_repeat=False):
            return sum(entropy(zip(a, b)) - entropy(a) for a, b in zip(columns, columns[1:]))
        case PrefixSum():  # any value but the answer before, unless the answer is always the same
            assert all(a != b for row in answers for a, b in zip(row, row[1:]))
            return sum(log(task.p - 1) for c in columns[1:] if len(set(c)) > 1)
        case Addition():
            return sum(map(entropy, columns[:-1] if task.reverse else columns[1:]))
        case Permutation():
            return entropy(map(tuple, answers)) - entropy(tuple(sorted(y)) for y in answers)  # the order alone
        case Histogram():
            return sum(map(entropy, columns))
        case Repeat():
            return entropy(map(tuple, answers))


@each(SMALL)
def test_loss_levels_by_enumeration_of_every_prompt(task):
    prompts = every(task)
    targets = len(prompts[0]) + len(answer(task, prompts[0])) - 1
    floor = (log(len(prompts)) - entropy(prompt[0] for prompt in prompts)) / targets
    assert task.loss_floor() == pytest.approx(floor, abs=1e-9)
    assert task.loss_plateau() == pytest.approx(floor + unknown(task, prompts) / targets, abs=1e-9)


LEVELS = [  # the floor, and the least and most of the plateau
    (WindowMix(), 1.434, 2.313, 2.313),
    (PrefixSum(), 1.2997, 2.5993, 2.5993),
    (Addition(), 1.151, 1.809, 1.86),
    (Addition(reverse=False), 1.151, 1.809, 1.86),
    (Histogram(), 1.165, 1.865, 1.875),
    (Permutation(), 1.475, 1.475, 1.475 + 0.905),
    (Permutation(compose=3), 1.475, 1.475, 1.475 + 0.905),
    (Repeat(), 1.2997, 1.2997 + log(16) / 32, 1.2997 + log(16) / 32),
]


@pytest.mark.parametrize("task, floor, least, most", LEVELS)
def test_loss_levels_of_the_paper(task, floor, least, most):
    assert task.loss_floor() == pytest.approx(floor, abs=1e-4 if floor == 1.2997 else 5e-4)
    assert least - 6e-4 < task.loss_plateau() < most + 6e-4


def test_data_facts_of_the_paper():
    def same(task):
        y = task.sample(8000, seed=21).answers
        return float((y[:, 1:] == y[:, :-1]).float().mean())

    def row_entropy(task):
        rows = task.sample(4000, seed=22).answers.tolist()
        return sum(map(entropy, rows)) / len(rows)

    assert same(PrefixSum()) == 0 and row_entropy(PrefixSum()) == pytest.approx(2.30, abs=0.01)
    assert same(Addition()) == pytest.approx(0.100, abs=0.005)
    assert row_entropy(Addition()) == pytest.approx(1.35, abs=0.01)
    assert same(Histogram()) == pytest.approx(0.329, abs=0.005)
    assert [same(Repeat(k=k)) for k in (1, 2, 4)] == pytest.approx([1.0, 0.933, 0.8], abs=4e-4)
    counts = Counter(Histogram().sample(8000, seed=23).answers.flatten().tolist())
    assert [counts[c] / counts.total() for c in (1, 2, 3)] == pytest.approx([0.27, 0.37, 0.23], abs=0.01)
    assert entropy(counts.elements()) == pytest.approx(1.42, abs=0.02)
    assert (PrefixSum(no_repeat=True).sample(500, seed=1).answers[:, -1] == 0).all()
    carry = Addition().sample(8000, seed=24).answers[:, -1]
    assert set(carry.tolist()) == {0, 1} and float(carry.float().mean()) == pytest.approx(0.5, abs=0.02)


POSITIONS = [  # partial solution, pairs of hidden states
    (WindowMix(), (0, 1, 2, 3), 30 + 6),
    (WindowMix(n=7, p=6, mix=OTHER), (3, 4), 15),
    (PrefixSum(), (0,), 105),
    (PrefixSum(n=5, p=7, no_repeat=True), (0,), 6),
    (PrefixSum(no_repeat=True), (0, 15), 91),
    (Addition(), (4,), 6),
    (Addition(reverse=False), (0,), 6),
    (Permutation(), (), 120),
    (Histogram(), (), 120),
    (Repeat(), (), 105),
    (Repeat(k=2), (), 42),
    (Repeat(k=4), (), 12),
    (Repeat(n=6, p=5, k=2), (), 2),
]


@pytest.mark.parametrize("task, partial, pairs", POSITIONS)
def test_partial_solution_and_pairs_of_the_paper(task, partial, pairs):
    assert task.partial_positions == partial
    assert sum(comb(len(group), 2) for group in task.collapse_groups) == pairs
    assert sorted(i for group in task.collapse_groups for i in group) == sorted(task.collapse_positions)
    assert not set(partial) & set(task.collapse_positions)


@each(ALL)
def test_parts_divide_the_outputs(task):
    assert sorted(i for part in task.parts.values() for i in part) == list(range(task.n_out))


PARTS = [
    (WindowMix(), [(0, 1, 2, 3), (4, 5, 6, 7, 8), (9, 10, 11, 12)]),
    (WindowMix(n=7, p=6, mix=OTHER), [(0, 1, 2), (3, 4), (5, 6, 7)]),
    (Repeat(n=6, k=3), [(0, 1), (2, 3), (4, 5)]),
    (PrefixSum(n=3), [(0,), (1, 2)]),
    (Addition(n=2), [(2,), (0, 1)]),
    (Permutation(n=2), [(0, 1)]),
]


@pytest.mark.parametrize("task, parts", PARTS)
def test_parts_by_hand(task, parts):
    assert list(task.parts.values()) == parts


BAD = [(cls, dict(n=0), "n=0") for cls in (WindowMix, PrefixSum, Addition, Permutation, Histogram, Repeat)]
BAD += [(cls, dict(p=2), "p=2") for cls in (WindowMix, PrefixSum, Repeat)]
BAD += [
    (WindowMix, dict(n=13), r"first=11, last=14\) leaves the prompt of n=13"),
    (WindowMix, dict(mix="123_disjoint_455"), "unknown mix '123_disjoint_455'; did you mean '123_disjoint_454'"),
    (WindowMix, dict(mix=((0, 1, 2),)), "k=0"),
    (WindowMix, dict(mix=((1, 3, 2),)), "first=3, last=2"),
    (WindowMix, dict(mix=((1, 0, 2),)), "first=0"),
    (WindowMix, dict(mix=()), "at least one segment"),
    (PrefixSum, dict(n=17, no_repeat=True), "no_repeat .* n=17 and p=17"),
    (Addition, dict(n=19), "n=19"),
    (Permutation, dict(n=1), "n=1"),
    (Permutation, dict(compose=0), "compose=0"),
    (Histogram, dict(max_value=1), "max_value >= 2 .* got max_value=1"),
    (Repeat, dict(k=3), "n=16 .* k=3"),
    (Repeat, dict(k=0), "k=0"),
]


@pytest.mark.parametrize("cls, size, cause", BAD)
def test_invalid_parameters_raise_with_their_cause(cls, size, cause):
    with pytest.raises(ValueError, match=cause):
        cls(**size)


@each(ALL + SMALL)
def test_json_round_trip(task):
    again = task_from_json(json.loads(json.dumps(task_to_json(task))))
    assert again == task and hash(again) == hash(task)


def test_decode_writes_prompts_as_text():
    prompt = [6, 3, 1, 2, 10, 6, 8, 9, 1, 11]
    assert Addition().decode(torch.tensor(prompt + answer(Addition(), prompt))) == "6 3 1 2 + 6 8 9 1 = 3 0 2 3 1"
    assert Permutation(n=2).decode(torch.tensor([4, 3, 0, 2, 1, 0, 3, 4])) == "4 3 | 2 1 | 3 4"
    assert PrefixSum(p=5).decode(torch.tensor([4, 5, 0])) == WindowMix(p=5).decode(torch.tensor([4, 5, 0])) == "4 | 0"
    assert Histogram().decode(torch.tensor([4, 0, 1])) == Repeat(p=3).decode(torch.tensor([4, 3, 1])) == "4 | 1"


@each(ALL)
def test_example_shows_one_prompt_and_its_answer(task):
    row = task.sample(1, seed=4).tokens[0]
    prompt, result = row[: task.prompt_len], row[task.prompt_len :]
    assert task.example(seed=4) == f"prompt  {task.decode(prompt)}\nanswer  {task.decode(result)}"
