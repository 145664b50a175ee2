"""The rule by which a plateau is found, on curves made by hand."""

import numpy as np
import pandas as pd
import pytest

import plateaulens as pl
from plateaulens.analysis import first_crossing

CURVE = pd.DataFrame({"loss": [3.0, 2.4, 2.05, 2.0, 2.0, 1.9, 1.0, 0.1]}, index=range(0, 80, 10))


def test_plateau_of_a_known_curve():
    plateau = pl.find_plateau(CURVE, level=2.0, floor=0.0)
    assert (plateau.start, plateau.end, plateau.drop, plateau.width) == (20, 50, 70, 30)


def test_plateau_that_has_not_ended_yet():
    plateau = pl.find_plateau(CURVE.iloc[:5], level=2.0, floor=0.0)
    assert (plateau.start, plateau.end, plateau.drop, plateau.width) == (20, None, None, None)


def test_recording_that_begins_after_the_drop_has_no_plateau():
    late = pl.find_plateau(
        pd.DataFrame({"loss": [1.2, 1.1, 1.0, 1.0]}, index=[300, 310, 320, 330]), level=2.0, floor=1.0
    )
    assert (late.start, late.end, late.drop) == (None, None, None)


def test_plateau_without_levels_raises():
    with pytest.raises(ValueError, match="pass level= and floor="):
        pl.find_plateau(CURVE)


def test_first_crossing_needs_consecutive_values():
    series = pd.Series([1, 3, 1, np.nan, 3, 3, 1], index=[0, 5, 10, 12, 15, 20, 25], dtype=float)
    assert first_crossing(series, 2.0) == 5
    assert first_crossing(series, 2.0, consecutive=2) == 15
    assert first_crossing(series, 2.0, consecutive=3) is None
    assert first_crossing(series, 2.0, above=False, consecutive=1) == 0


def test_rule_changes_start_end_and_drop():
    rule = pl.PlateauRule(start_excess=0.5, departure=0.4, drop=0.02, consecutive=2)
    plateau = pl.find_plateau(CURVE, level=2.0, floor=0.0, rule=rule)
    assert (plateau.start, plateau.end, plateau.drop) == (10, 60, 50) and plateau.rule == rule


def test_steps_on_the_plateau_are_between_consecutive_values_at_its_level():
    loss = pd.Series([5.0, 1.2, 1.0, 1.04, 1.0, 0.9, 0.4, 0.1], index=[0, 5, 10, 15, 20, 30, 40, 50])
    plateau = pl.find_plateau(loss.to_frame("loss"), level=1.0, floor=0.0)
    assert plateau.stretches(loss) == [(10, 20)]
    assert plateau.steps_among([0, 5, 12, 20, 25, 50], loss) == [12, 20]


def test_curve_that_passes_through_the_level_has_no_stretch():
    loss = pd.Series([5.0, 1.5, 1.01, 0.99, 0.4, 0.1], index=[0, 10, 20, 30, 40, 50])
    assert pl.find_plateau(loss.to_frame("loss"), level=1.0, floor=0.0).stretches(loss) == []


def test_stretches_end_before_the_drop_and_after_a_break():
    values = [5.0, 1.0, 1.0, 1.0, 1.2, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, 1.0]
    loss = pd.Series(values, index=range(0, 120, 10))
    plateau = pl.find_plateau(loss.to_frame("loss"), level=1.0, floor=0.0)
    assert plateau.end is None and plateau.stretches(loss) == [(10, 30), (50, 70)]
