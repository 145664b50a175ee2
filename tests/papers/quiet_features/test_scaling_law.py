"""Budgets: the paper's formula and grid, the frontier, and two phases on curves that have them or not."""

import numpy as np
import pandas as pd
import pytest

from plateaulens.papers.quiet_features import recipes as quiet
from plateaulens.papers.quiet_features.scaling_law import (
    PAPER_DECADES,
    flops,
    frontier,
    mean_length,
    steps_for,
    two_phases,
)


@pytest.mark.parametrize(
    "d, layers, batch, steps",
    [
        (8, 4, 8, (85, 84_595)),
        (32, 4, 8, (8, 7_179)),
        (64, 4, 64, (1, 239)),
        (128, 4, 8, (1, 493)),
        (512, 16, 8, (1, 8)),
    ],
)
def test_budgets_pay_for_the_steps_of_the_papers_table(d, layers, batch, steps):
    """Steps at ctx=52 for 1e9 and 1e12 operations."""
    sizes = dict(d_model=d, n_layers=layers, batch_size=batch, length=52.0)
    assert tuple(steps_for(budget, **sizes) for budget in (1e9, 1e12)) == steps
    assert flops(steps[1] - 1, **sizes) < 1e12 <= flops(steps[1], **sizes)


def test_lengths_are_those_of_the_paper():
    tasks = {name: recipe.task for name, recipe in quiet.RECIPES.items()}
    assert mean_length(tasks["binary-addition"]) == 52 and mean_length(tasks["multiplication"]) == 67
    for name, length in {"subarray": 94.9, "activities": 40.2, "bfs": 69.4, "path": 61.9, "mst": 77.4}.items():
        assert mean_length(tasks[name], n=2000) == pytest.approx(length, rel=0.015)


@pytest.mark.parametrize("name", quiet.RECIPES)
def test_recipes_of_paper_size_cost_1e13_operations(name):
    recipe = quiet.RECIPES[name]
    sizes = dict(d_model=64, n_layers=4, batch_size=64, length=mean_length(recipe.task))
    assert (recipe.model["d_model"], recipe.model["n_layers"], recipe.train.batch_size) == (64, 4, 64)
    assert recipe.train.steps == steps_for(1e13, **sizes)


def test_the_grid_is_the_papers():
    recipes = quiet.grid("binary-addition", [1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15])
    assert len(recipes) == 656 and max(r.train.steps for r in recipes) <= 100_000
    one = recipes[-1]
    assert (one.train.betas, one.train.weight_decay, one.train.grad_clip) == ((0.9, 0.95), 0.1, 1.0)
    assert one.model["d_model"] == 512 and one.train.lr_end == 0.1
    assert one.train.warmup == one.train.steps // 10
    with pytest.raises(ValueError, match="did you mean 'bfs'"):
        quiet.grid("bsf", [1e9])


def test_the_frontier_is_the_best_run_of_each_budget():
    runs = pd.DataFrame({"budget": [10, 1, 1, 10], "loss": [0.5, 0.9, 0.8, 0.7], "lr": [1, 2, 3, 4]})
    assert frontier(runs).to_dict("index") == {1: {"loss": 0.8, "lr": 3}, 10: {"loss": 0.5, "lr": 1}}
    joined = pd.concat([runs[:2], runs[2:].reset_index(drop=True)])  # labels 0, 1, 0, 1
    assert frontier(joined).equals(frontier(runs))
    with pytest.raises(ValueError, match="no budget"):
        frontier(runs.drop(columns="budget"))


def test_two_phases_are_found_where_they_are():
    found = two_phases({1e9: 0.66, 1e10: 0.65, 1e11: 0.64, 1e12: 0.02, 1e13: 0.01})
    assert (found.plateau, found.last_flat, found.transition) == (0.65, 1e11, 1e12) and found.steepness > 100
    flat = two_phases({1e9: 0.66, 1e10: 0.65, 1e11: 0.65, 1e12: 0.64})
    assert flat.transition is None
    assert two_phases({1e9: 0.5, 1e10: 0.5, 1e11: 0.01}).transition == 1e11  # however flat
    assert set(PAPER_DECADES) <= set(quiet.RECIPES)
    for losses in ({1e9: 1.0, 1e10: 0.5}, {1e9: 1.0, 1e10: 0.5, 1e11: 0.0}):
        with pytest.raises(ValueError, match="at least three"):
            two_phases(losses)


@pytest.mark.parametrize("exponent", [0.1, 1.0])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_power_law_has_no_second_phase(exponent, at):
    """However much it loses in all; the largest fall is made to be that from budget `at` to the next."""
    losses = pd.Series({10.0**k: 10.0 ** (-exponent * k) for k in range(9, 16)})
    losses.iloc[at + 1 :] *= 0.99
    found = two_phases(losses)
    assert found.last_flat == 10.0 ** (9 + at) and found.transition is None
    assert np.isnan(found.steepness) if at == 0 else found.steepness == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("times, transition", [(1.9, None), (2.1, 1e12)])
def test_a_second_phase_is_more_than_twice_as_steep(times, transition):
    before, fall = 10.0**-0.5, 10.0 ** (-0.5 * times)
    found = two_phases({1e9: 1.0, 1e10: before, 1e11: before**2, 1e12: before**2 * fall, 1e13: before**2 * fall**1.01})
    assert found.steepness == pytest.approx(times)
    assert found.transition == transition
