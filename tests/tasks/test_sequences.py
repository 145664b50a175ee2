"""Moving-window sum and copy tasks against plain Python, and what all sequence tasks share."""

import itertools
import json
from collections import Counter
from math import log

import numpy as np
import pytest
import torch

from plateaulens.tasks import TASKS, Copy, MovingWindowSum, Reverse, task_from_json, task_to_json

MWS = [dict(), dict(n=7, k=3, p=11), dict(n=5, k=5, p=3), dict(n=6, k=1, p=7), dict(n=1, k=1, p=4)]
COPIES = [(cls, size) for cls in (Copy, Reverse) for size in (dict(), dict(n=7, max_value=11), dict(n=1, max_value=2))]
ALL = [MovingWindowSum(**size) for size in MWS] + [cls(**size) for cls, size in COPIES]


def window_sums(x, k, p):
    return [x[i] if i < k - 1 else sum(x[i - k + 1 : i + 1]) % p for i in range(len(x))]


@pytest.mark.parametrize("size", MWS)
def test_window_sum_answers_equal_a_loop(size):
    task = MovingWindowSum(**size)
    batch = task.sample(200, seed=3)
    seen = set()
    for row in batch.tokens.tolist():
        x, separator, y = row[: task.n], row[task.n], row[task.n + 1 :]
        assert separator == task.p and y == window_sums(x, task.k, task.p)
        seen |= set(x)
    assert seen == set(range(1, task.p))


def test_window_sum_by_hand():
    task = MovingWindowSum(n=7, k=3, p=11)
    x = torch.tensor([[10, 2, 3, 7, 1, 9, 5]])
    assert task.answer(x).tolist() == [[10, 2, 4, 1, 0, 6, 4]]


@pytest.mark.parametrize("cls, size", COPIES)
def test_copy_and_reverse_answers_equal_a_loop(cls, size):
    task = cls(**size)
    seen = set()
    for row in task.sample(200, seed=4).tokens.tolist():
        x, y = row[: task.n], row[task.n + 1 :]
        assert row[task.n] == 0 and y == (x if cls is Copy else list(reversed(x)))
        seen |= set(x)
    assert seen == set(range(1, task.max_value + 1))


@pytest.mark.parametrize("task", ALL, ids=repr)
def test_batch_holds_answer_positions_and_loss_mask(task):
    batch = task.sample(9, seed=0)
    assert len(batch) == 9 and batch.tokens.shape == (9, task.n_ctx) and batch.prompt_len == task.prompt_len
    assert int(batch.tokens.max()) < task.d_vocab and int(batch.tokens.min()) >= 0
    assert torch.equal(batch.answers, batch.tokens[:, -task.n_out :])
    assert torch.equal(batch.inputs, batch.tokens[:, :-1]) and torch.equal(batch.targets, batch.tokens[:, 1:])
    assert batch.loss_mask.all() and batch.answer_positions[0].tolist() == list(range(task.n, 2 * task.n))
    assert torch.equal(batch[2:4].tokens, batch.tokens[2:4])


def optimal_by_loop(task):
    entries = set()
    for r in range(task.n):
        if isinstance(task, MovingWindowSum):
            keys = [c for c in range(task.n) if (c == r if r < task.k - 1 else r - task.k < c <= r)]
        else:
            keys = [r] if type(task) is Copy else [task.n - 1 - r]
        entries |= {(task.n + r, c) for c in keys}
    return entries


@pytest.mark.parametrize("task", ALL, ids=repr)
def test_optimal_map_equals_a_loop(task):
    (omega,) = task.optimal_attention()
    assert omega.shape == (1, task.n_targets, task.n_targets)
    assert {tuple(e) for e in omega[0].nonzero().tolist()} == optimal_by_loop(task)


@pytest.mark.parametrize("task, size", [(MovingWindowSum(), 31), (Copy(), 16), (Reverse(), 16)])
def test_optimal_map_sizes_and_their_share_of_causal_entries(task, size):
    (omega,) = task.optimal_attention()
    causal = sum(q + 1 for q in range(16, 32))
    assert int(omega.sum()) == size and causal == 392
    assert not omega[0].triu(1).any()


LEVELS = [
    (MovingWindowSum(), 1.2997, 2.6277),
    (Copy(), 1.2997, 2.6859),
    (Reverse(), 1.2997, 2.6859),
    (MovingWindowSum(n=8), 1.2130, 2.4525),
]


@pytest.mark.parametrize("task, floor, plateau", LEVELS)
def test_loss_levels_of_the_paper(task, floor, plateau):
    assert task.loss_floor() == pytest.approx(floor, abs=1e-4)
    assert task.loss_plateau() == pytest.approx(plateau, abs=1e-4)


@pytest.mark.parametrize("n, k, p", [(4, 2, 5), (5, 3, 4), (3, 3, 7), (6, 1, 3), (16, 2, 17)])
def test_plateau_by_enumeration_of_every_window(n, k, p):
    counts = Counter(sum(x) % p for x in itertools.product(range(1, p), repeat=k))
    total = sum(counts.values())
    entropy = -sum(c / total * log(c / total) for c in counts.values())
    task = MovingWindowSum(n=n, k=k, p=p)
    assert task.loss_plateau() == pytest.approx(((n - 1) * log(p - 1) + (n - k + 1) * entropy) / (2 * n))
    assert task.loss_floor() == pytest.approx((n - 1) * log(p - 1) / (2 * n))


@pytest.mark.parametrize("task", [MovingWindowSum(n=4, k=2, p=5), Copy(n=4, max_value=5)], ids=repr)
def test_floor_is_the_loss_of_a_perfect_model(task):
    batch = task.sample(8, seed=0)
    highest = task.p - 1 if isinstance(task, MovingWindowSum) else task.max_value
    outputs = torch.full((8, task.n_targets, task.d_vocab), -1e4)
    outputs[:, : task.n - 1, 1 : highest + 1] = 0.0
    rest = batch.targets[:, task.n - 1 :, None]
    outputs[:, task.n - 1 :].scatter_(2, rest, 0.0)
    assert float(task.loss(outputs, batch)) == pytest.approx(task.loss_floor(), abs=1e-5)


def test_loss_ignores_targets_outside_the_loss_mask():
    task = MovingWindowSum(n=3, k=2, p=5)
    batch = task.sample(4, seed=0)
    outputs = torch.randn(4, task.n_targets, task.d_vocab, generator=torch.Generator().manual_seed(0))
    loss_mask = torch.zeros_like(batch.loss_mask)
    loss_mask[:, 3:] = True
    batch = type(batch)(batch.tokens, batch.answer_positions, loss_mask, task)
    log_p = outputs.log_softmax(-1)
    terms = [-float(log_p[b, s, batch.tokens[b, s + 1]]) for b in range(4) for s in range(3, task.n_targets)]
    assert float(task.loss(outputs, batch)) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


POSITIONS = [
    (MovingWindowSum(), (0,), tuple(range(1, 16))),
    (MovingWindowSum(n=7, k=3, p=11), (0, 1), (2, 3, 4, 5, 6)),
    (MovingWindowSum(n=3, k=1), (), (0, 1, 2)),
    (Copy(n=3), (), (0, 1, 2)),
    (Reverse(n=3), (), (0, 1, 2)),
]


@pytest.mark.parametrize("task, partial, collapse", POSITIONS)
def test_partial_and_collapse_positions(task, partial, collapse):
    assert task.partial_positions == partial and task.collapse_positions == collapse


@pytest.mark.parametrize("task", ALL, ids=repr)
def test_sampling_is_pure(task):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    one, two, other = task.sample(64, seed=7), task.sample(64, seed=7), task.sample(64, seed=8)
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.tokens, other.tokens)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tobytes()
    assert torch.equal(task.sample(64, seed=torch.Generator().manual_seed(7)).tokens, one.tokens)


BAD = [
    (MovingWindowSum, dict(n=0), "n=0"),
    (MovingWindowSum, dict(n=4, k=5), "k=5"),
    (MovingWindowSum, dict(k=0), "k=0"),
    (MovingWindowSum, dict(p=2), "p=2"),
    (Copy, dict(n=0), "Copy needs n"),
    (Reverse, dict(n=-1), "Reverse needs n"),
    (Copy, dict(max_value=1), "max_value >= 2"),
]


@pytest.mark.parametrize("cls, size, cause", BAD)
def test_invalid_parameters_raise_with_their_cause(cls, size, cause):
    with pytest.raises(ValueError, match=cause):
        cls(**size)


@pytest.mark.parametrize("task", ALL, ids=repr)
def test_json_round_trip(task):
    values = json.loads(json.dumps(task_to_json(task)))
    assert task_from_json(values) == task and values["task"] in TASKS


def test_unknown_name_raises_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mws'"):
        task_from_json({"task": "mvs"})
    with pytest.raises(ValueError, match="did you mean 'max_value'"):
        task_from_json({"task": "copy", "max_valu": 3})


def test_example_and_decode():
    task = MovingWindowSum(n=3, k=2, p=5)
    assert task.decode(torch.tensor([1, 4, 5, 0])) == "1 4 | 0"
    assert Copy().decode(torch.tensor([0, 3])) == "| 3"
    assert task.example(seed=1) == task.example(seed=1) and task.example().count("\n") == 1
