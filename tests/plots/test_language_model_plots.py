"""Figures of language models: step 0 has its own place, and every number is the one that was measured."""

import json
import math

import numpy as np
import pandas as pd
import pytest

import plateaulens as pl
from plateaulens.plots import site_curves as layers, steps_axis
from plateaulens.plots.language_models import intervals

STEPS = [0, 1, 2, 4, 8, 16, 512, 1000, 143000]


class EvaluatedCheckpoints:
    """Five prompts at each step, with the face of a survey."""

    name = "tiny"

    def __init__(self, steps=STEPS, columns=("collapse", "repetition")):
        draw = np.random.default_rng(0)
        self._values = {
            step: {c: draw.uniform(-0.2 if c == "collapse" else 0, 1, 5) for c in columns} for step in steps
        }
        means = {step: {c: v.mean() for c, v in values.items()} for step, values in self._values.items()}
        self.metrics = pd.DataFrame(means).T.rename_axis("step")

    def values(self, step):
        return self._values[step]


def frame_of(steps=STEPS, **columns):
    values = columns or {"collapse": 0.5, "repetition": 0.25}
    return pd.DataFrame(values, index=pd.Index(steps, name="step"))


def drawn(figure, name, axis):
    """The curves of a measurement on an x axis, without the edges of its band."""
    return [t for t in figure.data if t.name == name and t.xaxis == axis]


def layout_of(figure, axis):
    """`x3` -> layout.xaxis3."""
    return figure.layout[f"{axis[0]}axis{axis[1:]}"]


# Step 0.


@pytest.mark.parametrize(
    "draw, panels",
    [
        (lambda: pl.plots.early(EvaluatedCheckpoints()), [("x", "x2")]),
        (
            lambda: pl.plots.side_by_side(frame_of(range(0, 400, 10)), EvaluatedCheckpoints()),
            [("x", "x2"), ("x3", "x4")],
        ),
    ],
)
def test_step_0_lies_apart_from_the_log_axis_and_no_line_joins_it(draw, panels):
    figure = draw()
    for log, zero in panels:
        on_log, on_zero = layout_of(figure, log), layout_of(figure, zero)
        assert on_log.type == "log" and on_zero.type != "log"
        assert on_zero.domain[1] < on_log.domain[0], "a gap"
        assert list(on_zero.tickvals) == [0] and on_zero.range[0] < 0 < on_zero.range[1]
        assert all(x > 0 for t in figure.data if t.xaxis == log for x in t.x)
        points = [t for t in figure.data if t.xaxis == zero]
        assert len(points) == 2 and all(list(t.x) == [0] and t.mode == "markers" for t in points)
        gap = on_zero.domain[1], on_log.domain[0]
        assert {mark.xanchor for mark in figure.layout.shapes} >= set(gap), "a break mark at each end of the gap"


@pytest.mark.parametrize("draw", [pl.plots.early, lambda evaluated: pl.plots.side_by_side(evaluated, evaluated)])
def test_without_a_step_0_there_is_no_place_for_it(draw):
    figure = draw(EvaluatedCheckpoints([1, 2, 4]))
    assert not figure.layout.shapes and {t.xaxis for t in figure.data} <= {"x", "x3"}
    assert figure.layout.xaxis.domain[0] == 0 and figure.layout.yaxis.anchor == "x"


def test_step_0_alone_can_be_drawn():
    figure = pl.plots.early(EvaluatedCheckpoints([0]))
    assert [t.y[0] for t in figure.data if t.xaxis == "x2"] == list(EvaluatedCheckpoints([0]).metrics.loc[0])
    assert not [x for t in figure.data if t.xaxis == "x" for x in t.x]


@pytest.mark.parametrize("steps", [STEPS, [1], [300, 400], [0, 16], range(0, 401, 5)])
def test_the_log_axis_holds_every_other_step(steps):
    axis = pl.plots.early(frame_of(steps)).layout.xaxis
    later = [step for step in steps if step]
    assert axis.range[0] < math.log10(min(later)) and math.log10(max(later)) < axis.range[1]
    assert all(min(later) <= tick <= max(later) for tick in axis.tickvals) and len(axis.tickvals) <= 18


def test_ticks_are_the_densest_powers_that_there_is_room_for():
    assert steps_axis.ticks(1, 5000, 18) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000]
    assert steps_axis.ticks(1, 5000, 8) == [1, 4, 16, 64, 256, 1000, 4000]
    assert steps_axis.ticks(1, 143000, 8) == [1, 10, 100, 1000, 10000, 100000]
    assert steps_axis.ticks(300, 400, 8) == [300, 400] and steps_axis.ticks(7, 7, 8) == [7]


def test_short_steps_can_be_told_apart():
    steps = [0, 1, 512, 999, 1000, 1001, 1024, 1100, 10000, 100000, 142900, 143000, 928646, 1000000]
    assert [steps_axis.short(s) for s in (0, 512, 1000, 1500, 1024, 143000)] == [
        "0",
        "512",
        "1k",
        "1.5k",
        "1024",
        "143k",
    ]
    assert len({steps_axis.short(step) for step in steps}) == len(steps)


# Curves and intervals.


def test_early_draws_each_metric_on_its_own_axis_in_the_color_of_its_title():
    evaluated = EvaluatedCheckpoints()
    figure = pl.plots.early(evaluated)
    for name, axis in (("collapse", "y"), ("repetition", "y2")):
        (line,), (start,) = drawn(figure, name, "x"), drawn(figure, name, "x2")
        pd.testing.assert_series_equal(pd.Series(line.y, line.x), evaluated.metrics[name][1:], check_names=False)
        assert start.y[0] == evaluated.metrics[name][0]
        scale = layout_of(figure, axis)
        assert {line.yaxis, start.yaxis} == {axis} and scale.title.text == name
        assert {line.line.color, start.marker.color, scale.title.font.color, scale.tickfont.color} == {line.line.color}
    assert len({t.line.color for t in figure.data if t.showlegend is None and t.mode != "markers"}) == 2
    assert [t.name for t in figure.data if t.showlegend is not False] == ["collapse", "repetition"]
    assert figure.layout.title.text == "tiny: collapse and repetition"


def test_intervals_are_students_and_are_what_is_drawn():
    evaluated = EvaluatedCheckpoints()
    evaluated._values[4]["collapse"] = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    evaluated._values[0]["collapse"] = np.array([0.1, 0.3, np.nan, np.nan, np.nan])
    evaluated._values[8]["collapse"] = np.array([0.1, np.nan, np.nan, np.nan, np.nan])
    evaluated.metrics = evaluated.metrics.assign(collapse=[np.nanmean(evaluated.values(s)["collapse"]) for s in STEPS])
    found = intervals(evaluated, evaluated.metrics.collapse)
    reach = 2.7764451 * math.sqrt(0.025 / 5)  # t(4) at 97.5 %; the variance of 0.1 ... 0.5 is 0.025
    np.testing.assert_allclose(found.loc[4], [0.3 - reach, 0.3 + reach], rtol=1e-6)
    reach = 12.7062047 * 0.1  # t(1); the standard error of 0.1 and 0.3 is 0.1
    np.testing.assert_allclose(found.loc[0], [0.2 - reach, 0.2 + reach], rtol=1e-6)
    assert 8 not in found.index, "one prompt has no interval"
    figure = pl.plots.early(evaluated)
    for edge in ("low", "high"):
        (line,) = drawn(figure, f"collapse, {edge}", "x")
        pd.testing.assert_series_equal(pd.Series(line.y, line.x), found[edge].drop(0), check_names=False)
    (start,) = drawn(figure, "collapse", "x2")
    np.testing.assert_allclose([start.error_y.array[0], start.error_y.arrayminus[0]], reach, rtol=1e-6)
    assert "interval" in figure.layout.title.subtitle.text


def test_a_frame_has_no_intervals():
    figure = pl.plots.early(EvaluatedCheckpoints().metrics)
    assert len(figure.data) == 4 and not any(t.error_y.array for t in figure.data)
    assert figure.layout.title.subtitle.text is None and figure.layout.title.text == "collapse and repetition"


@pytest.mark.parametrize(
    "column, values, low, high",
    [
        ("collapse", [0.4, 0.5], 0, 1),
        ("collapse", [-0.3, 0.5], -0.3, 1),
        ("collapse@blocks.0.hook_resid_post", [0.4, 0.5], 0, 1),
        ("norm", [30.0, 80.0], 30, 80),
        ("norm", [5.0, 5.0], 5, 5),
    ],
)
def test_shares_and_cosines_are_drawn_from_0_to_1_and_the_rest_as_they_are(column, values, low, high):
    axis = pl.plots.early(frame_of([1, 2], **{column: values}), column, column).layout.yaxis
    margin = 0.1 * (high - low) or 0.6
    assert low - margin < axis.range[0] < low and high < axis.range[1] < high + margin


def test_steps_without_a_value_are_left_out():
    frame = frame_of([0, 1, 2, 4], collapse=[np.nan, 0.1, np.nan, 0.3], repetition=[0.5, np.nan, 0.6, np.nan])
    figure = pl.plots.early(frame)
    assert [(list(t.x), list(t.y)) for t in figure.data] == [([1, 4], [0.1, 0.3]), ([2], [0.6]), ([0], [0.5])]


# Layers.

NAMES = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(12)), layers.FINAL]


def at_layers(steps=STEPS, names=NAMES, metric="collapse"):
    """A number of its own in every cell, in shuffled columns."""
    columns = {f"{metric}@{name}": np.arange(len(steps)) / 10 + i * 10 for i, name in enumerate(names)}
    frame = pd.DataFrame(columns, index=pd.Index(steps, name="step"))
    return frame[list(reversed(frame.columns))]


def test_each_cell_is_the_frames_value_with_layers_upwards():
    frame = at_layers()
    figure = pl.plots.layer_steps(frame)
    (heat,) = figure.data
    rows = [*range(len(NAMES) - 1), len(NAMES)]  # the last row but one is the gap
    for row, name in zip(rows, NAMES, strict=True):
        np.testing.assert_array_equal(heat.z[row], frame[f"collapse@{name}"])
    assert np.isnan(heat.z[len(NAMES) - 1].astype(float)).all()
    assert list(figure.layout.yaxis.ticktext) == ["embeddings", *map(str, range(12)), "final norm"]
    assert figure.layout.yaxis.autorange is None, "upwards"
    edges = np.diff(heat.y)
    assert edges[-2] < 0.5 and set(np.delete(edges, -2).round(9)) == {1}, "a narrow gap below the final norm"
    for row, tick in zip(rows, figure.layout.yaxis.tickvals, strict=True):
        assert tick == pytest.approx((heat.y[row] + heat.y[row + 1]) / 2)
    assert heat.text[-1][0] == "after the final norm, step 0" and heat.text[1][2] == "layer 0, step 2"


@pytest.mark.parametrize("steps", [[0], STEPS, [0, *range(1000, 144000, 1000)]])
def test_every_step_is_equally_wide_and_labelled(steps):
    figure = pl.plots.layer_steps(at_layers(steps))
    assert set(np.diff(figure.data[0].x)) == {1}
    assert list(figure.layout.xaxis.ticktext) == [steps_axis.short(step) for step in steps]
    assert list(figure.layout.xaxis.tickvals) == [i + 0.5 for i in range(len(steps))]
    assert (figure.layout.width or 700) / len(steps) > 13, "room for a label turned upright"


def test_rows_are_what_was_recorded():
    def rows_of(names, **choice):
        return list(pl.plots.layer_steps(at_layers(names=names), **choice).layout.yaxis.ticktext)

    assert rows_of(["blocks.10.hook_resid_post", "blocks.2.hook_resid_post"]) == ["2", "10"]
    assert rows_of(["hook_embed", "blocks.2.hook_resid_post"]) == ["embeddings", "2"]
    assert rows_of(NAMES[:1], site="hook_resid_pre") == ["0"]
    plain = at_layers(names=NAMES[1:3]).assign(collapse=0.5)  # plain collapse is read after the final norm
    figure = pl.plots.layer_steps(plain)
    assert list(figure.layout.yaxis.ticktext) == ["0", "1", "final norm"] and set(figure.data[0].z[-1]) == {0.5}
    norm = at_layers(names=NAMES[1:3], metric="norm").assign(norm=0.5, collapse=0.5)  # a plain norm says not where
    assert list(pl.plots.layer_steps(norm, "norm").layout.yaxis.ticktext) == ["0", "1"]


def test_colours_of_cosines_reach_from_0_to_1():
    low = at_layers(names=NAMES[1:2]) * 0 + 0.5
    assert (pl.plots.layer_steps(low).data[0].zmin, pl.plots.layer_steps(low).data[0].zmax) == (0, 1)
    assert pl.plots.layer_steps(low - 0.7).data[0].zmin == pytest.approx(-0.2)


# Two models.


def test_both_models_have_the_same_scales():
    run, evaluated = frame_of(range(0, 400, 10), collapse=-0.5, repetition=0.1), EvaluatedCheckpoints()
    figure = pl.plots.side_by_side(run, evaluated)
    assert tuple(figure.layout.xaxis.range) == tuple(figure.layout.xaxis3.range)
    assert figure.layout.xaxis.tickvals == figure.layout.xaxis3.tickvals and figure.layout.xaxis3.matches == "x"
    for row, (name, y) in enumerate((("collapse", "y"), ("repetition", "y2"))):
        (left,), (right,) = drawn(figure, name, "x"), drawn(figure, name, "x3")
        assert left.yaxis == right.yaxis == y, "one axis"
        np.testing.assert_array_equal(left.y, run[name][1:])
        np.testing.assert_array_equal(right.y, evaluated.metrics[name][1:])
        assert layout_of(figure, y).title.text == name
        assert not row or layout_of(figure, y).domain[1] < figure.layout.yaxis.domain[0]
    assert figure.layout.yaxis.range[0] < -0.5 and figure.layout.xaxis.domain[1] < figure.layout.xaxis4.domain[0]
    assert [note.text for note in figure.layout.annotations] == ["run", "tiny"]
    assert {t.xaxis for t in figure.data if (t.name or "").endswith("low")} == {"x3"}, "only prompts have intervals"


# What is wrong.


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: pl.plots.early(frame_of(loss=1.0)), r"collapse was not recorded; .*choose from \['loss'\]"),
        (lambda: pl.plots.early(frame_of(collapse=np.nan, repetition=1.0)), "collapse has no value at any step"),
        (lambda: pl.plots.early(frame_of([0], collapse=[[1.0, 2.0]], repetition=[1.0])), "collapse has a list"),
        (lambda: pl.plots.early(pd.DataFrame()), "collapse was not recorded"),
        (lambda: pl.plots.layer_steps(frame_of()), r'no collapse .* at hook_resid_post .*measure "collapse@\*"'),
        (
            lambda: pl.plots.layer_steps(at_layers(), site="hook_mid"),
            r"choose from \['hook_resid_post', 'hook_resid_pre'\]",
        ),
        (lambda: pl.plots.layer_steps(at_layers() * np.nan), "collapse has no value"),
        (
            lambda: pl.plots.side_by_side(frame_of(collapse=1.0, loss=2.0), EvaluatedCheckpoints()),
            r"^the run has no repetition; both have \['collapse'\]$",
        ),
        (
            lambda: pl.plots.side_by_side(frame_of(loss=2.0), frame_of(collapse=np.nan, loss=1.0), ["collapse"]),
            r"^the run has no collapse, the evaluation has no collapse; both have \['loss'\]$",
        ),
        (lambda: pl.plots.side_by_side(frame_of(), frame_of(), []), "no metric to draw; both have"),
    ],
)
def test_one_clear_line_says_what_is_wrong(draw, message):
    with pytest.raises(ValueError, match=message) as error:
        draw()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pl.plots.early(EvaluatedCheckpoints()),
        lambda: pl.plots.layer_steps(at_layers()),
        lambda: pl.plots.side_by_side(EvaluatedCheckpoints(), EvaluatedCheckpoints()),
    ],
)
def test_figures_become_valid_json(draw):
    json.loads(draw().to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_nothing_that_was_given_is_changed():
    frame = at_layers()
    before = frame.copy()
    pl.plots.layer_steps(frame)
    pd.testing.assert_frame_equal(frame, before)
