"""The tasks of arXiv 2505.03997 without graphs, against plain Python written from the specification."""

from collections import Counter
from math import factorial, log, prod

import pytest
import torch
import torch.nn.functional as F

from plateaulens.tasks.algorithms.activity_selection import ActivitySelection
from plateaulens.tasks.algorithms.binary_arithmetic import (
    Arithmetic,
    BinaryAddition,
    MajorityOfMajorities,
    Multiplication,
)
from plateaulens.tasks.algorithms.maximum_subarray import MaximumSubarray, multisets

PAPER = [BinaryAddition(), Multiplication(), MajorityOfMajorities(), MaximumSubarray(), ActivitySelection()]
SMALL = [BinaryAddition(bits=n) for n in (2, 5, 64)] + [Multiplication(bits=n) for n in (2, 5, 33)]
SMALL += [MajorityOfMajorities(bits=b, groups=g) for b, g in [(2, 1), (8, 4), (15, 5), (9, 3)]]
SMALL += [MaximumSubarray(length=n, largest=v) for n, v in [(2, 1), (7, 1), (12, 2), (64, 12)]]
SMALL += [ActivitySelection(n=n) for n in (1, 4, 40)]
ALL = PAPER + SMALL + [type(task)(answer_only=True) for task in PAPER]


def each(tasks):
    return pytest.mark.parametrize("task", tasks, ids=repr)


def number(bits):
    return sum(bit << i for i, bit in enumerate(bits))


def bits(value, count):
    return [value >> i & 1 for i in range(count)]


def operands(task, row):
    return number(row[: task.bits]), number(row[task.bits + 1 : 2 * task.bits + 1])


def groups(task, row):
    size = task.bits // task.groups
    return [int(2 * sum(row[i : i + size]) > size) for i in range(0, task.bits, size)]


def kadane(x):
    """Of a list the sums ending here, and first and last of the best run."""
    here, start, best, found, sums = x[0], 0, x[0], (0, 0), [x[0]]
    for i in range(1, len(x)):
        here, start = (x[i], i) if here < 0 else (here + x[i], start)
        if here > best:
            best, found = here, (start, i)
        sums.append(here)
    return sums, found


def answer(task, row):
    """The output for the input at the start of a row of tokens."""
    match task:
        case BinaryAddition():
            return bits(sum(operands(task, row)), task.bits + 1)
        case Multiplication():
            return bits(prod(operands(task, row)), 2 * task.bits)
        case MajorityOfMajorities():
            return [int(2 * sum(groups(task, row)) > task.groups)]
        case MaximumSubarray():
            first, last = kadane([token - task.largest for token in row[: task.length]])[1]
            return row[first : last + 1]
        case ActivitySelection():
            taken, free = [], 0
            for start, end in sorted(zip(row[: task.n], row[task.n : 2 * task.n]), key=lambda pair: pair[1]):
                if start >= free:
                    taken, free = [*taken, start, end], end
            return taken


def carries(x, y, columns):
    """The carry into each of `columns` when x and y are added."""
    return [(x % 2**j + y % 2**j) >> j for j in columns]


def features(task, row, released):
    """Of one example: name -> kind, class in the figures, and (position, label) of each offset."""
    match task:
        case Arithmetic():
            (a, b), n = operands(task, row), task.bits
            equals = row.index(task.equals)
            found = {"first_operand": ("binary", "quiet", list(enumerate(row[:n], equals)))}
            if isinstance(task, BinaryAddition):
                found["carry"] = ("binary", "quiet", list(enumerate(carries(a, b, range(1, n + 1)), equals + 1)))
                return found
            for k in range(2, n + 1):
                before, addend = a * (b % 2 ** (k - 1)), (a << k - 1) * (b >> k - 1 & 1)
                labels = carries(before, addend, range(k, k + n))
                found[f"carry_{k}"] = ("binary", "quiet" if k == n else "", list(enumerate(labels, equals + k)))
            return found | ({"carry": ("binary", "", list(enumerate(labels, equals + 1)))} if released else {})
        case MajorityOfMajorities():
            size = task.bits // task.groups
            return {"group_vote": ("binary", "", [((g + 1) * size - 1, v) for g, v in enumerate(groups(task, row))])}
        case MaximumSubarray():
            x = [token - task.largest for token in row[: task.length]]
            here, _ = kadane(x)
            best = [max(here[: i + 1]) for i in range(len(x))]
            start = 1 + task.length // 2 if released else 1
            return {
                "is_prev_negative": ("binary", "quiet", [(start + i, int(v < 0)) for i, v in enumerate(x[:-1])]),
                "max_ending_here": ("integer", "loud", list(enumerate([0] * released + here[released:], start))),
                "max_so_far": ("integer", "", list(enumerate(best, start))),
            }
        case ActivitySelection():
            return {"retrieve_start_times": ("integer", "loud", list(enumerate(row[: task.n], task.n)))}


@each(ALL)
def test_examples_solve_their_inputs(task):
    batch = task.sample(300, seed=1)
    assert batch.tokens.shape == (300, task.n_ctx) and batch.answer_positions.shape == (300, task.n_out)
    rows = batch.tokens.tolist()
    for row, out, answers, loss_mask in zip(
        rows, batch.answer_positions.tolist(), batch.answers.tolist(), batch.loss_mask.tolist()
    ):
        equals, end = row.index(task.equals), row.index(task.eos)
        assert row[equals + 1 : end] == answer(task, row) and set(row[end:]) == {task.eos}
        run = list(range(equals - 1 + task.answer_only, end))  # from `=`, or after it, to the first EOS
        assert [i for i, counts in enumerate(loss_mask) if counts] == [i for i in out if i >= 0] == run
        assert answers == [row[i + 1] if i >= 0 else -1 for i in out]
    assert {row.index(task.equals) for row in rows} == {equals} and task.loss_floor() == 0


@pytest.mark.parametrize("released", [False, True], ids=["ours", "released"])
@each(ALL)
def test_features_equal_the_reference_implementation(task, released):
    batch = task.sample(200, seed=2)
    found = task.features(batch, released=released)
    for s, row in enumerate(batch.tokens.tolist()):
        expected = features(task, row, released)
        assert expected.keys() == found.keys()
        for name, (kind, published, requires) in expected.items():
            feature = found[name]
            assert (feature.kind, feature.published) == (kind, published)
            assert list(zip(feature.positions[s].tolist(), feature.labels[s].tolist())) == requires, name
    assert all(0 <= int(f.positions.min()) <= int(f.positions.max()) < task.n_ctx - 1 for f in found.values())


BY_HAND = [  # the examples of the specification, then ties: a sum of 0 goes on, the first of equally good runs stays
    (BinaryAddition(bits=4), "1101+0110=10001<EOS>"),
    (Multiplication(bits=4), "1101+0110=01000010<EOS>"),
    (MajorityOfMajorities(bits=16), "1110110100011101=1<EOS>"),
    (MajorityOfMajorities(bits=16), "1100110011111111=0<EOS>"),
    (MaximumSubarray(length=6), "MENILA=NIL<EOS><EOS><EOS><EOS>"),
    (MaximumSubarray(length=3, largest=2), "DBE=DBE<EOS>"),
    (MaximumSubarray(length=3, largest=1), "CAC=C<EOS><EOS><EOS>"),
    (MaximumSubarray(length=3, largest=1), "BAB=B<EOS><EOS><EOS>"),
    (MaximumSubarray(length=3, largest=3), "ACB=C<EOS><EOS><EOS>"),
    (ActivitySelection(n=4), "BDCGFFJH=BFGH<EOS><EOS><EOS><EOS><EOS>"),
]


@pytest.mark.parametrize("task, text", BY_HAND)
def test_examples_by_hand(task, text):
    inputs = torch.tensor([[task.symbols.index(symbol) for symbol in text.split("=")[0]]])
    assert task.decode(task.assemble(inputs, task.answer(inputs)).tokens[0]) == text


def test_tokens_and_carries_by_hand():
    task = BinaryAddition(bits=4)
    inputs = torch.tensor([[1, 1, 0, 1, 2, 0, 1, 1, 0]])  # 11 + 6
    batch = task.assemble(inputs, task.answer(inputs))
    assert batch.tokens.tolist() == [[1, 1, 0, 1, 2, 0, 1, 1, 0, 3, 1, 0, 0, 0, 1, 4]]
    assert task.features(batch)["carry"].labels.tolist() == [[0, 1, 1, 1]]
    assert task.features(batch)["carry"].positions.tolist() == [[10, 11, 12, 13]]


def test_sizes_of_the_paper():
    assert [task.n_ctx for task in (*PAPER, BinaryAddition(bits=64))] == [52, 67, 67, 130, 66, 196]
    assert [task.d_vocab for task in PAPER] == [5, 5, 5, 21, 21]
    loss_mask = [task.sample(8000, seed=3).loss_mask.sum(1).float().mean() for task in PAPER]
    assert loss_mask[:3] == [19, 34, 3]
    assert [float(x) for x in loss_mask[3:]] == pytest.approx([28.9 + 2, 2 * 3.09 + 2], rel=0.02)


@each(ALL)
def test_sampling_is_pure(task):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = task.sample(64, seed=7), task.sample(64, seed=7), task.sample(64, seed=8)
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.tokens, other.tokens)
    assert torch.equal(task.sample(64, seed=torch.Generator().manual_seed(7)).tokens, one.tokens)
    assert torch.equal(before, torch.get_rng_state())


def chi_square(counts, shares):
    """In standard deviations above its mean, about normal."""
    total = sum(counts.values())
    distance = sum((counts[key] - total * share) ** 2 / (total * share) for key, share in shares.items())
    return (distance - len(shares) + 1) / (2 * len(shares) - 2) ** 0.5


def test_multisets_and_their_orders_are_uniform():
    drawn = Counter(map(tuple, multisets(40_000, 3, 4, torch.Generator().manual_seed(9)).tolist()))
    shares = {}  # 20 multisets of 3 out of 4 numbers, each in 1, 3 or 6 orders
    for row in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
        orders = factorial(3) // prod(map(factorial, Counter(row).values()))
        shares[tuple(row)] = 1 / 20 / orders
    assert sum(shares.values()) == pytest.approx(1) and set(drawn) == set(shares)
    assert chi_square(drawn, shares) < 5
    assert chi_square(drawn, dict.fromkeys(shares, 1 / 64)) > 50  # the wrong law is seen


@each([BinaryAddition(bits=2), Multiplication(bits=2), MajorityOfMajorities(bits=4)])
def test_bits_are_fair(task):
    inputs = Counter(tuple(row[: row.index(task.equals)]) for row in task.sample(8000, seed=4).tokens.tolist())
    assert len(inputs) == 16 and chi_square(inputs, dict.fromkeys(inputs, 1 / 16)) < 5


def test_data_facts_of_the_paper():
    batch = MajorityOfMajorities().sample(20_000, seed=5)
    votes = batch.task.features(batch)["group_vote"].labels.float()
    assert float(votes.mean()) == pytest.approx(0.4018, abs=0.01)
    assert float(batch.answers[:, 1].float().mean()) == pytest.approx(0.1813, abs=0.01)
    task = MaximumSubarray()
    batch = task.sample(8000, seed=6)
    assert float((batch.tokens[:, :64] - 9.0).mean(1).std()) == pytest.approx(1.38, abs=0.05)
    assert float((batch.answer_positions[:, -1] >= 0).float().mean()) == pytest.approx(
        0.036, abs=0.01
    )  # the whole array
    chosen = Counter((ActivitySelection().sample(8000, seed=6).loss_mask.sum(1) // 2 - 1).tolist())
    assert sum(k * count for k, count in chosen.items()) / 8000 == pytest.approx(3.09, abs=0.05)
    assert min(chosen) == 1 and max(chosen) >= 6
    numbers = ActivitySelection(n=2).sample(20_000, seed=6).tokens[:, :4]
    same = (numbers[:, 0] == numbers[:, 1]) & (numbers[:, 2] == numbers[:, 3])
    assert float(same.float().mean()) == pytest.approx((9 + 36 * 2 / 6) / 495, abs=0.005)
    assert numbers[:, :2].unique().tolist() == list(range(1, 10))
    assert (numbers[:, 2:] - numbers[:, :2]).unique().tolist() == list(range(1, 10))


def chance(task, inputs):
    """The loss of a model that knows the tokens' frequencies place by place, and nothing of the input."""
    batch = task.assemble(inputs, task.answer(inputs))
    frequencies = F.one_hot(batch.targets, task.d_vocab).double().mean(0)
    return float(task.loss(frequencies.log().expand(len(batch), -1, -1), batch))


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("cls", [BinaryAddition, Multiplication])
def test_plateau_of_arithmetic_by_enumeration(cls, size, only):
    task = cls(bits=size, answer_only=only)
    rows = [bits(a, size) + [2] + bits(b, size) for a in range(2**size) for b in range(2**size)]
    assert task.loss_plateau() == pytest.approx(chance(task, torch.tensor(rows)), abs=1e-9)


@each([MajorityOfMajorities(bits=b, groups=g, answer_only=b < 9) for b, g in [(8, 4), (9, 3), (15, 5), (2, 1)]])
def test_plateau_of_majorities_by_enumeration(task):
    rows = torch.tensor([bits(i, task.bits) for i in range(2**task.bits)])
    assert task.loss_plateau() == pytest.approx(chance(task, rows), abs=1e-9)


def test_loss_levels_of_the_paper():
    assert [task.published_chance() for task in PAPER] == pytest.approx(
        [18 / 19 * log(2), 32 / 34 * log(2), log(2) / 3, log(20), log(20)]
    )
    levels = [task.loss_plateau() for task in PAPER]
    assert levels[0] == pytest.approx(17 / 19 * log(2)) and levels[2] == pytest.approx(0.4733 / 3, abs=1e-4)
    product = Multiplication()  # more bits than were counted: the formula against draws
    assert levels[1] == pytest.approx(chance(product, product.sample(20_000, seed=8).tokens[:, :33]), abs=5e-4)
    assert levels[3:] == [None, None]


BAD = [(BinaryAddition, dict(bits=1), "bits=1"), (Multiplication, dict(bits=0), "bits=0")]
BAD += [
    (MajorityOfMajorities, dict(bits=10), "bits=10 .* groups=4"),
    (MajorityOfMajorities, dict(groups=0), "groups=0"),
]
BAD += [(MaximumSubarray, dict(length=1), "length=1"), (MaximumSubarray, dict(largest=13), "largest=13")]
BAD += [(ActivitySelection, dict(n=0), "n=0")]


@pytest.mark.parametrize("cls, size, cause", BAD)
def test_invalid_parameters_raise_with_their_cause(cls, size, cause):
    with pytest.raises(ValueError, match=cause):
        cls(**size)
