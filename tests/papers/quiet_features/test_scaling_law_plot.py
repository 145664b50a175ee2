"""The figure of loss against compute draws the frontiers that it is given."""

import numpy as np
import pandas as pd
import pytest

from plateaulens.papers.quiet_features.plots import scaling_law
from plateaulens.papers.quiet_features.scaling_law import TwoPhases, frontier, two_phases


def shapes(figure, **wanted):
    return [s for s in figure.layout.shapes if all(s[key] == value for key, value in wanted.items())]


def front(losses):
    budgets = [10.0 ** (9 + i) for i in range(len(losses))]
    return frontier(pd.DataFrame({"budget": budgets, "loss": losses, "accuracy": 0.5}))


FRONTS = {
    "addition": {"8": front([0.66, 0.65, 0.64, 0.02]), "16": front([0.66, 0.65, 0.65])},
    "bfs": {"8": front([3, 2, 1])},
}


def test_scaling_law_draws_frontiers_chance_and_transitions():
    found = {"addition": {size: two_phases(fr.loss) for size, fr in FRONTS["addition"].items()}}
    assert found["addition"]["16"].transition is None
    figure = scaling_law(FRONTS, {"addition": 0.6}, found)
    lines = [(t.name, t.xaxis, list(t.y), t.showlegend) for t in figure.data]
    expected = [("8", "x", True), ("16", "x", True), ("8", "x2", False)]
    drawn = [front for sizes in FRONTS.values() for front in sizes.values()]
    assert lines == [(n, x, list(fr.loss), s) for (n, x, s), fr in zip(expected, drawn, strict=True)]
    (band,) = shapes(figure, type="rect")
    assert (band.x0, band.x1, band.xref) == (1e11, 1e12, "x")
    (chance,) = shapes(figure, type="line")
    assert (chance.y0, chance.yref) == (0.6, "y")
    (note,) = [a for a in figure.layout.annotations if a.text == "chance"]
    assert note.y == pytest.approx(np.log10(0.6))  # notes on log axes are placed by the logarithm, lines are not
    assert {figure.layout.xaxis.type, figure.layout.yaxis.type, figure.layout.yaxis2.type} == {"log"}


def test_scaling_law_of_another_column_has_a_plain_axis():
    figure = scaling_law(FRONTS, value="accuracy")
    assert set(figure.data[0].y) == {0.5} and figure.layout.yaxis.type is None


@pytest.mark.parametrize("n, grid", [(1, (1, 1)), (3, (1, 3)), (4, (2, 3)), (10, (4, 3))])
def test_scaling_law_has_a_panel_for_each_task(n, grid):
    figure = scaling_law({f"task {i}": FRONTS["bfs"] for i in range(n)})
    domains = [(figure.layout[f"yaxis{i}"].domain, figure.layout[f"xaxis{i}"].domain) for i in ["", *range(2, n + 1)]]
    assert len({y for y, _ in domains}) == grid[0] and len({x for _, x in domains}) == grid[1]
    titled = sum(figure.layout[f"xaxis{i}"].title.text is not None for i in ["", *range(2, n + 1)])
    assert titled == grid[1]  # the lowest of each column


def test_scaling_law_says_what_is_missing():
    with pytest.raises(ValueError, match=r"at least one frontier, got \{'bfs': \[\]\}"):
        scaling_law({"bfs": {}})
    with pytest.raises(ValueError, match="frontier of bfs, 8, has no column 'los'; it has"):
        scaling_law({"bfs": FRONTS["bfs"]}, value="los")


def test_a_transition_is_marked_only_where_it_was_found():
    phases = {"bfs": {"8": TwoPhases(3.0, 1e9, None, 1.0), "unknown": TwoPhases(3.0, 1e9, 1e10, 1.0)}}
    assert not shapes(scaling_law(FRONTS, phases=phases), type="rect")
