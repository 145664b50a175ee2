"""Figures of probes and ablations draw the numbers that they are given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import plateaulens as pl
from plateaulens.analysis.plateau import Plateau
from plateaulens.plots.probing import CONTROLS as LABELS
from plateaulens.probing.ablation import Ablation
from plateaulens.probing.edit_directions import CONTROLS
from plateaulens.probing.verdict import thirds

STEPS, OFFSETS = [0, 10, 40], 6
LOSSES = pd.DataFrame({"loss": [2.0, 1.0, 0.9, 0.1]}, index=pd.Index([0, 10, 20, 40], name="step"))


def over(offsets=OFFSETS, seed=0, **more):
    """Probes of two sites, the second the better to train, as `probe_checkpoints` returns them."""
    rng = np.random.default_rng(seed)
    axes = ("step", "site", "offset")
    loss = rng.uniform(0.1, 1.0, (len(STEPS), 2, offsets))
    train = np.zeros_like(loss) + np.array([2.0, 1.0])[:, None]
    baseline = np.zeros_like(loss) + rng.uniform(0.5, 2.0, (2, offsets))
    values = {"loss": loss, "train_loss": train, "baseline": baseline, **more}
    found = xr.Dataset({name: (axes, value) for name, value in values.items()})
    return found.assign(offsets=offsets).assign_coords(step=STEPS, site=["a", "b"], offset=range(offsets))


def traces(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def shapes(figure, **wanted):
    return [s for s in figure.layout.shapes if all(s[key] == value for key, value in wanted.items())]


# Probes.


def test_probes_draws_each_third_and_the_untrained_network():
    found = over()
    table, figure = thirds(found), pl.plots.probes(found)
    for third in ("first", "middle", "last"):
        line, zero = traces(figure, f"{third} third")
        assert (list(line.x), line.xaxis, list(zero.x), zero.xaxis) == ([10, 40], "x", [0], "x2")
        np.testing.assert_array_equal([*zero.y, *line.y], table.loss.sel(third=third))
        (dotted,) = traces(figure, f"{third} third, untrained network")
        assert set(dotted.y) == {float(table.baseline.sel(third=third)[0])} and dotted.line.color == line.line.color
        assert dotted.line.dash == "dot" and list(dotted.x) == [10, 40]
    assert figure.layout.yaxis.type == "log" and "nats" in figure.layout.yaxis.title.text


def test_probes_draws_the_loss_above_and_the_plateau_behind_both():
    figure = pl.plots.probes(over(), LOSSES, Plateau(10, 20, 40, 0.95, 0.0))
    line, zero = traces(figure, "held-out loss")
    assert [*zero.y, *line.y] == list(LOSSES.loss) and (line.yaxis, zero.yaxis) == ("y2", "y2")
    assert figure.layout.yaxis.domain[1] < figure.layout.yaxis2.domain[0]
    (band,) = shapes(figure, type="rect")
    assert (band.x0, band.x1, band.xref, band.yref) == (10, 20, "x", "paper")
    (level,) = shapes(figure, yref="y2")
    assert (level.y0, level.y1) == (0.95, 0.95)
    assert shapes(figure, x0=40, x1=40)
    open_end = pl.plots.probes(over(), LOSSES, Plateau(10, None, None, 0.95, 0.0))
    assert shapes(open_end, type="rect")[0].x1 == 40 and not shapes(open_end, x0=40, x1=40)


def test_probes_leaves_out_a_third_in_which_nothing_varies():
    found = over()
    for name in ("loss", "train_loss", "baseline"):
        found[name][:, :, :2] = np.nan
    figure = pl.plots.probes(found)
    assert not traces(figure, "first third") and traces(figure, "last third")
    with pytest.raises(ValueError, match="varies at no offset"):
        pl.plots.probes(found.where(found.offset < 0).assign(offsets=OFFSETS))


def test_probes_of_several_features_draw_the_one_that_is_named():
    both = xr.concat([over(), over(seed=1)], xr.Variable("feature", ["carry", "first_operand"]))
    np.testing.assert_array_equal(
        traces(pl.plots.probes(both, feature="first_operand"), "last third")[0].y,
        traces(pl.plots.probes(over(seed=1)), "last third")[0].y,
    )
    with pytest.raises(ValueError, match="choose the feature= .*carry"):
        pl.plots.probes(both)


def test_probes_of_numbers_have_no_nats():
    numbers = over(r2=np.zeros((3, 2, OFFSETS)))
    assert "squared error" in pl.plots.probes(numbers).layout.yaxis.title.text
    compare_with = xr.concat(
        [numbers, over()], xr.Variable("feature", ["max_ending_here", "is_prev_negative"]), join="outer"
    )
    for name, unit in (("max_ending_here", "squared error"), ("is_prev_negative", "nats")):
        assert unit in pl.plots.probes(compare_with, feature=name).layout.yaxis.title.text


# Ablations.


def result(seed=0):
    rng = np.random.default_rng(seed)
    values = xr.Dataset(
        {
            "intact": (("measurement", "example"), rng.uniform(0.8, 1, (2, 5))),
            "ablated": (("measurement", "example"), rng.uniform(0.2, 0.3, (2, 5))),
            "controls": (("control", "draw", "measurement", "example"), rng.uniform(0.4, 0.6, (2, 8, 2, 5))),
        },
        coords={"measurement": ["exact_match", "loss"], "control": ["gaussian", "mine"]},
    )
    names = [(m, o) for m in ("exact_match", "loss") for o in ("intact", "gaussian", "mine")]
    rows = [[0.5, -0.1 * (i + 1), -0.1 * (i + 1) - 0.05, -0.1 * (i + 1) + 0.02, 0.0] for i in range(len(names))]
    index = pd.MultiIndex.from_tuples(names, names=["measurement", "with"])
    table = pd.DataFrame(rows, index, ["mean", "difference", "low", "high", "as_far"])
    return Ablation("carry", "hyperplane", ("blocks.0.hook_resid_post",), values, table)


@pytest.mark.parametrize("measurement", ["exact_match", "loss"])
def test_ablation_draws_means_draws_and_differences(measurement):
    found = result()
    figure, values = pl.plots.ablation(found, measurement), found.values.sel(measurement=measurement)
    bars = {t.name: t for t in figure.data if t.type == "bar"}
    assert list(bars) == ["intact", "ablated", "Gaussian", "mine"]
    assert bars["ablated"].x[0] == float(values.ablated.mean()) and bars["ablated"].error_x.array is None
    draws = values.controls.sel(control="gaussian").mean("example").values
    bar = bars["Gaussian"]
    low, high = np.percentile(draws, [2.5, 97.5])
    assert bar.x[0] == draws.mean()
    assert (bar.x[0] + bar.error_x.array[0], bar.x[0] - bar.error_x.arrayminus[0]) == pytest.approx((high, low))
    np.testing.assert_array_equal(traces(figure, "Gaussian, draws")[0].x, draws)
    for name, label in {"intact": "intact", "gaussian": "Gaussian", "mine": "mine"}.items():
        (dot,) = traces(figure, f"ablated - {label}")
        row = found.table.loc[measurement, name]
        assert dot.xaxis == "x2" and (dot.x[0], list(dot.y)) == (row.difference, [label])
        ends = (dot.x[0] - dot.error_x.arrayminus[0], dot.x[0] + dot.error_x.array[0])
        assert ends == pytest.approx((row.low, row.high))
    assert {s.x0 for s in shapes(figure, type="line")} == {float(values.ablated.mean()), 0}


def test_every_control_has_a_label():
    assert set(LABELS) == set(CONTROLS)


def test_ablation_without_controls_and_of_an_unknown_measurement():
    alone = result()
    bare = SimpleNamespace(
        feature="carry",
        method="hyperplane",
        values=alone.values.isel(control=slice(0)),
        table=alone.table.drop(index=["gaussian", "mine"], level=1),
    )
    figure = pl.plots.ablation(bare)
    assert [t.name for t in figure.data] == ["intact", "ablated - intact", "ablated"]
    with pytest.raises(ValueError, match="accuracy was not measured; choose from .*exact_match"):
        pl.plots.ablation(alone, "accuracy")
