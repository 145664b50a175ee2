"""Nuclear-norm completion against cvxpy, closed forms, symmetries and its optimality certificate."""

import itertools
from functools import cache

import cvxpy as cp
import networkx as nx
import pytest
import torch

from plateaulens.papers.matrix_completion.cells import disconnected
from plateaulens.papers.matrix_completion.nuclear_norm import complete_by_nuclear_norm, least_norm
from plateaulens.tasks import MatrixCompletion


def matrices(n, rows=7, cols=7, rank=2, p_mask=0.3, seed=0):
    batch = MatrixCompletion(rows=rows, cols=cols, rank=rank, p_mask=p_mask).sample(n, seed=seed)
    return batch.values.view(n, rows, cols).double(), batch.observed.view(n, rows, cols)


def norm(z):
    return torch.linalg.svdvals(z).sum(-1)


def objective(z, x, seen, penalty):
    if penalty == 0:
        return norm(z)
    return ((z - x).square() * seen).sum((1, 2)) / seen.sum((1, 2)) + penalty * norm(z)


@cache
def problem(rows, cols, penalty):
    """In cvxpy: the problem and its data, compiled once."""
    z, x = cp.Variable((rows, cols)), cp.Parameter((rows, cols))
    seen, share = cp.Parameter((rows, cols), nonneg=True), cp.Parameter((rows, cols), nonneg=True)
    if penalty == 0:
        return cp.Problem(cp.Minimize(cp.normNuc(z)), [cp.multiply(seen, z) == x]), z, x, seen, share
    error = cp.sum_squares(cp.multiply(share, z) - x)
    # Over the penalty, so that Clarabel's absolute tolerance does not end it early.
    return cp.Problem(cp.Minimize(error / penalty + cp.normNuc(z))), z, x, seen, share


def by_cvxpy(x, seen, penalty):
    task, z, known, mask, share = problem(*x.shape, penalty)
    root = seen.double() / seen.sum().sqrt()
    mask.value, share.value = seen.double().numpy(), root.numpy()
    known.value = (x * (seen if penalty == 0 else root)).numpy()
    task.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9)
    assert task.status == "optimal"
    return torch.from_numpy(z.value)


SETTINGS = [(7, 7, 2, 0.3), (7, 7, 2, 0.6), (7, 7, 1, 0.1), (4, 6, 3, 0.4), (9, 3, 1, 0.3)]


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_objective_equals_that_of_cvxpy(setting, penalty):
    x, seen = matrices(4, *setting)
    ours = complete_by_nuclear_norm(x, seen, penalty=penalty)
    theirs = torch.stack([by_cvxpy(*pair, penalty) for pair in zip(x, seen)])
    assert penalty > 0 or torch.equal(ours[seen], x[seen])
    values = (objective(z, x, seen, penalty) for z in (ours, theirs))
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_certificate_proves_every_optimum(setting, penalty):
    x, seen = matrices(20, *setting, seed=1)
    known, penalties = x * seen, torch.full((20, 1, 1), penalty).double()
    z, y, gap = least_norm(known, seen, penalties, 1e-7, 50)
    h = penalties * seen.sum((1, 2), keepdim=True) / 2
    assert (gap <= 1e-7).all() and (y[~seen] == 0).all()
    assert torch.linalg.matrix_norm(y, 2).max() <= 1
    torch.testing.assert_close((z + h * y)[seen], x[seen], rtol=0, atol=1e-12)
    assert (norm(z) - (z * y).sum((1, 2)) <= 1e-7 * known.norm(dim=(1, 2)) + 1e-12).all()


def test_missing_corner_equals_its_closed_form():
    r"""|Z|_*^2 = |Z|^2 + 2 |det Z| for 2 x 2: the corner is bc/a, the rank-1 fill, or a in its size if that is less."""
    a, b, c = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).double()
    a = a.abs() + 0.1
    x = torch.stack([a, b, c, torch.full_like(a, torch.nan)], 1).view(-1, 2, 2)
    corner = (b * c).sign() * torch.minimum(a, (b * c).abs() / a)
    filled = complete_by_nuclear_norm(x, torch.tensor([[True, True], [True, False]]), tol=1e-8)[:, 1, 1]
    torch.testing.assert_close(filled, corner, rtol=0, atol=5e-4)  # the norm is flat about it where bc = a^2
    assert (filled - corner).abs().median() < 1e-7


def test_penalty_on_an_observed_matrix_lowers_singular_values():
    x, _ = matrices(20, 4, 5, 3)
    everywhere = torch.ones(4, 5, dtype=torch.bool)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    lowered = u @ torch.diag_embed((s - 0.05 * 20 / 2).clamp(min=0)) @ vh
    torch.testing.assert_close(complete_by_nuclear_norm(x, everywhere, penalty=0.05), lowered, rtol=0, atol=2e-5)
    assert torch.equal(complete_by_nuclear_norm(x, everywhere), x)
    assert complete_by_nuclear_norm(x, everywhere, penalty=100).abs().max() < 1e-6


def test_disconnected_cells_are_completed_by_0():
    x, seen = matrices(500, 4, 4, 1, p_mask=0.5)
    seen[0] = False
    free = disconnected(seen)
    for penalty in (0.0, 1e-2):
        assert complete_by_nuclear_norm(x, seen, penalty=penalty)[free].abs().max() < 1e-9
    assert free.any() and (complete_by_nuclear_norm(x, seen)[0] == 0).all()


def test_completion_is_equivariant_to_scale_order_and_sign():
    x, seen = matrices(30, 5, 7)
    z = complete_by_nuclear_norm(x, seen)
    rows, cols = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([6, 0, 3, 2, 5, 1, 4])
    signs = torch.tensor([1.0, -1, 1, -1, -1]).double()[:, None]
    same = [
        (complete_by_nuclear_norm(1e4 * x, seen), 1e4 * z),
        (complete_by_nuclear_norm(1e-4 * x, seen), 1e-4 * z),
        (complete_by_nuclear_norm(signs * x, seen), signs * z),
        (complete_by_nuclear_norm(x[:, rows][:, :, cols], seen[:, rows][:, :, cols]), z[:, rows][:, :, cols]),
        (complete_by_nuclear_norm(x.mT, seen.mT), z.mT),
    ]
    for got, wanted in same:
        torch.testing.assert_close(got / wanted.norm(), wanted / wanted.norm(), rtol=0, atol=1e-8)
    scaled = complete_by_nuclear_norm(10 * x, seen, penalty=1e-2), 10 * complete_by_nuclear_norm(x, seen, penalty=1e-3)
    torch.testing.assert_close(*scaled, rtol=0, atol=1e-7)


def test_completion_is_independent_of_the_batch(monkeypatch):
    x, seen = matrices(12)
    x[~seen] = torch.nan
    x[::3], seen[1::5] = 1e6 * x[::3], False
    alone = torch.cat([complete_by_nuclear_norm(*pair) for pair in zip(x.split(1), seen.split(1))])
    together = complete_by_nuclear_norm(x, seen)
    monkeypatch.setattr("plateaulens.papers.matrix_completion.nuclear_norm.SYSTEM_ENTRIES", 3 * 49**2)
    for z in (together, complete_by_nuclear_norm(x, seen)):
        torch.testing.assert_close(z, alone, rtol=1e-8, atol=1e-9)


def test_sweep_over_penalties_equals_single_calls():
    x, seen = matrices(5)
    penalties = torch.tensor([0.0, 1e-3, 1e-2])
    swept = complete_by_nuclear_norm(x, seen, penalty=penalties[:, None])
    for z, penalty in zip(swept, penalties.tolist(), strict=True):
        torch.testing.assert_close(z, complete_by_nuclear_norm(x, seen, penalty=penalty), rtol=0, atol=1e-9)
    ours = complete_by_nuclear_norm(x.float(), seen, penalty=torch.linspace(0, 1e-2, 5))
    assert ours.dtype == torch.float32 and ours.shape == (5, 7, 7)
    assert torch.equal(ours[0][seen[0]], x[0][seen[0]].float())
    one, none = complete_by_nuclear_norm(x[0], seen[0]), complete_by_nuclear_norm(x[:0], seen[:0])
    assert one.shape == (7, 7) and none.shape == (0, 7, 7)


def test_bad_input_raises_and_large_gap_warns():
    x, seen = matrices(8)
    with pytest.raises(ValueError, match="penalty must be 0 or more and finite, got -1.0"):
        complete_by_nuclear_norm(x, seen, penalty=torch.tensor([-1.0] + [0.0] * 7))
    with pytest.warns(
        RuntimeWarning, match="8 of 8 matrices may be above the minimum by more than tol=1e-07, by up to"
    ):
        complete_by_nuclear_norm(x, seen, max_steps=3)
    with pytest.warns(RuntimeWarning, match="raise tol"):  # more than float64 can
        z = complete_by_nuclear_norm(x, seen, tol=1e-15)
    torch.testing.assert_close(norm(z), norm(complete_by_nuclear_norm(x, seen)), rtol=1e-7, atol=0)
    x[seen] = torch.inf
    with pytest.raises(ValueError, match=f"got {int(seen.sum())} cells that are not"):
        complete_by_nuclear_norm(x, seen)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 5), (4, 4), (9, 7)])
@pytest.mark.parametrize("p_mask", [0.3, 0.7, 0.9])
def test_disconnected_cells_equal_those_of_networkx(size, p_mask):
    seen = torch.rand(3, 10, *size, generator=torch.Generator().manual_seed(0)) > p_mask
    for mask, free in zip(seen.flatten(0, 1), disconnected(seen).flatten(0, 1)):
        graph = nx.Graph()
        graph.add_nodes_from([(axis, i) for axis, n in enumerate(size) for i in range(n)])
        graph.add_edges_from(((0, i), (1, j)) for i, j in mask.nonzero().tolist())
        for i, j in itertools.product(*map(range, size)):
            assert free[i, j] != nx.has_path(graph, (0, i), (1, j))


def test_longest_chain_of_observed_cells_connects():
    stairs = torch.zeros(15, 15, dtype=torch.bool)
    stairs.diagonal()[:] = True
    stairs.diagonal(1)[:] = True
    assert not disconnected(stairs).any()
    stairs[7, 7] = False  # two parts: rows 0 to 6 with columns 0 to 7, and the rest
    first_rows, first_cols = torch.arange(15)[:, None] < 7, torch.arange(15) < 8
    assert torch.equal(disconnected(stairs), first_rows != first_cols)
