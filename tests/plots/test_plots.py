"""Figures of runs show the numbers that were recorded."""

import json

import numpy as np
import pandas as pd
import pytest

import plateaulens as pl
from plateaulens.analysis.checkpoint_traces import CheckpointTraces
from plateaulens.plots import curves, site_curves, style
from plateaulens.tracing import traces as tracing

STEPS = pd.Index(range(0, 60, 10), name="step")


def run_of(values, steps=STEPS, **columns):
    return pd.DataFrame({"loss": values, **columns}, index=steps)


def runs_of(n):
    """Run i has the loss i^2 everywhere."""
    return [run_of([float(i * i)] * len(STEPS)) for i in range(n)]


def named(figure):
    """Traces by name; the last of a name wins."""
    return {trace.name: trace for trace in figure.data}


def titles(figure):
    return [note.text for note in figure.layout.annotations]


def y_of(figure, name):
    return list(named(figure)[name].y)


# Several runs.


@pytest.mark.parametrize(
    "n, band, low, high", [(4, "min to max", 0, 9), (11, "10th to 90th percentile", 1, 81)], ids=["few", "many"]
)
def test_seeds_draws_the_median_and_the_band_of_its_legend(n, band, low, high):
    figure = pl.plots.seeds(runs_of(n))
    (entry,) = [trace for trace in figure.data if trace.showlegend]
    assert entry.name == f"{n} runs: median, {band}"
    assert list(entry.y) == [np.median([i * i for i in range(n)])] * len(STEPS)
    assert (set(y_of(figure, "low")), set(y_of(figure, "high"))) == ({low}, {high})
    assert [list(t.y) for t in figure.data if (t.name or "").startswith("run ")] == [[i * i] * 6 for i in range(n)]


def test_seeds_of_one_run_have_no_band():
    figure = pl.plots.seeds(runs_of(1))
    assert [trace.name for trace in figure.data] == ["run 0", "1 run"]


def test_seeds_use_only_common_steps():
    runs = [run_of([1.0, 2.0, 3.0], [0, 10, 20]), run_of([5.0, 7.0, np.nan], [10, 15, 20])]
    figure = pl.plots.seeds(runs)
    middle = figure.data[-1]
    assert (list(middle.x), list(middle.y)) == ([10], [3.5])
    assert list(named(figure)["run 1"].x) == [10, 15, 20]
    with pytest.raises(ValueError, match="no step at which all runs recorded one of .*measure at equal steps"):
        pl.plots.seeds([run_of([1.0], [0]), run_of([1.0], [1])])


def test_groups_have_one_color_and_one_legend_entry_each():
    groups = {name: [run.assign(accuracy=0.5) for run in runs_of(3)] for name in "abc"}
    figure = pl.plots.seeds(groups)
    assert [t.name for t in figure.data if t.showlegend] == [f"{g}, 3 runs: median, min to max" for g in "abc"]
    colors = {g: {t.line.color for t in figure.data if t.legendgroup == g and t.line.color} for g in "abc"}
    assert colors == {"a": {style.BLUE}, "b": {style.ORANGE}, "c": {style.GREEN}}
    assert titles(figure) == ["loss (nats)", "accuracy"]


def test_seeds_draw_given_columns_over_a_given_axis():
    runs = [run_of([2.0] * 6, tokens=STEPS * 100, entropy=1.5) for _ in range(2)]
    figure = pl.plots.seeds(runs, ["entropy"], x="tokens")
    assert (titles(figure), figure.layout.xaxis.title.text) == (["entropy (nats)"], "tokens")
    assert list(figure.data[-1].x) == [0, 1000, 2000, 3000, 4000, 5000]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "each group needs at least one run"),
        (({"a": []},), r"\{'a': 0\}"),
        (({},), "each group needs at least one run"),
        (([run_of([1.0] * 6)], ["los"]), r"los was not recorded; .*choose from \['loss'\]"),
        (([run_of([[1.0, 2.0]] * 6)],), "loss has a list at each step"),
        (([run_of([1.0] * 6)], None, "loss"), "same value at several steps; choose a column that grows"),
        (([pd.DataFrame({"odd": [1.0]})],), r"nothing to draw: recorded columns are \['odd'\]; pass columns="),
    ],
)
def test_seeds_errors_name_the_cause(arguments, message):
    with pytest.raises(ValueError, match=message):
        pl.plots.seeds(*arguments)


# Parts of the answer.


class Named:
    """A stand-in for a task with two parts."""

    parts = {"easy": (0,), "hard": (1, 2)}

    def __repr__(self):
        return "Named()"


def test_part_accuracy_draws_a_named_line_per_part():
    run = pd.DataFrame({"part_accuracy": [[0.0, 0.1], float("nan"), [1.0, None], [1.0, 0.9]]}, index=[0, 5, 10, 15])
    figure = pl.plots.part_accuracy(run, Named())
    assert list(named(figure)["easy"].x) == [0, 10, 15]
    np.testing.assert_array_equal(named(figure)["easy"].y, [0, 1, 1])
    np.testing.assert_array_equal(named(figure)["hard"].y, [0.1, np.nan, 0.9])
    assert len({(t.line.color, t.line.dash) for t in figure.data}) == 2


def test_part_accuracy_errors_name_what_is_missing():
    with pytest.raises(ValueError, match="part_accuracy was not recorded; add .*to the metrics list"):
        pl.plots.part_accuracy(run_of([1.0] * 6), Named())
    three = pd.DataFrame({"part_accuracy": [[1.0, 0.5, 0.0]]})
    with pytest.raises(ValueError, match=r"3 parts were recorded, but Named\(\) has 2 .*pass task="):
        pl.plots.part_accuracy(three, Named())
    with pytest.raises(ValueError, match="names of the parts are not known.*pass task="):
        pl.plots.part_accuracy(three)


def test_24_line_styles_differ():
    lines = [tuple(style.distinct(i).values()) for i in range(24)]
    assert len(set(lines)) == 24


# Sites.


def at_sites(n_layers, metric="collapse"):
    """A DataFrame with a different value for each site, and NaN at one step."""
    sites = [f"blocks.{i}.hook_{name}" for i in range(n_layers) for name in site_curves.SITE_ORDER] + [tracing.FINAL]
    return pd.DataFrame({f"{metric}@{s}": [float(i), np.nan, i + 0.5] for i, s in enumerate(sites)}, [0, 10, 20])


@pytest.mark.parametrize("n_layers", [1, 2, 12])
def test_sites_have_a_panel_per_layer_and_a_color_per_site(n_layers):
    run = at_sites(n_layers)
    figure = pl.plots.sites(run)
    assert site_curves.FINAL == tracing.FINAL
    assert titles(figure) == [f"collapse, layer {i}" for i in range(n_layers)] + ["collapse, after the final norm"]
    for trace, column in zip(figure.data, run, strict=True):
        np.testing.assert_array_equal(trace.y, run[column])
    assert [t.name for t in figure.data if t.showlegend] == [*site_curves.SITE_ORDER, "after the final norm"]
    for i, name in enumerate(site_curves.SITE_ORDER):
        drawn = [t for t in figure.data if t.name == name]
        assert len(drawn) == n_layers and {t.line.color for t in drawn} == {style.PALETTE[i]}


def test_sites_are_in_the_order_of_the_model():
    hooks = ["unembed.hook_in", "hook_embed", "blocks.10.hook_resid_post", "blocks.2.attn.hook_z"]
    run = pd.DataFrame({f"norm@{hook}": [float(i)] for i, hook in enumerate(hooks)} | {"norm": [9.0]})
    figure = pl.plots.sites(run, "norm")
    assert titles(figure) == [f"norm, {s}" for s in ("layer 2", "layer 10", "hook_embed", "after the final norm")]
    assert [t.y[0] for t in figure.data] == [3, 2, 1, 0]
    assert figure.data[0].name == "attn.z"


def test_sites_error_names_how_to_record_them():
    with pytest.raises(ValueError, match=r'no collapse@SITE was recorded.*metrics=\[\.\.\., "collapse@\*"\]'):
        pl.plots.sites(pd.DataFrame({"collapse": [1.0]}))


# Attention of all site_curves.


def traces_of(steps, n_layers, heads, size=3):
    pattern = np.random.default_rng(0).normal(size=(len(steps), n_layers, heads, size, size)).astype("float32")
    batch = pl.tasks.MovingWindowSum(n=2).sample(2, seed=0)
    return CheckpointTraces(list(steps), pattern, pattern[:, 0, 0], np.zeros((len(steps), 2, size), int), batch)


@pytest.mark.parametrize("n_layers, heads", [(1, 1), (2, 3)])
def test_layer_maps_show_each_head_and_step_on_one_scale(n_layers, heads):
    traces = traces_of([0, 5, 9], n_layers, heads)
    figure = pl.plots.layer_maps(traces)
    assert titles(figure) == [f"layer {i}, head {j}" for i in range(n_layers) for j in range(heads)]
    assert [m.label for m in figure.layout.sliders[0].steps] == ["0", "5", "9"] == [f.name for f in figure.frames]
    for i, frame in enumerate(figure.frames):
        assert list(frame.traces) == list(range(n_layers * heads))
        for heat, shown in zip(frame.data, traces.pattern[i].reshape(-1, 3, 3), strict=True):
            np.testing.assert_array_equal(heat.z, shown)
        limit = pytest.approx(np.abs(traces.pattern[i]).max())
        assert {(-h.zmin, h.zmax) for h in frame.data} == {(frame.data[0].zmax,) * 2} and frame.data[0].zmax == limit
    assert [heat.showscale for heat in figure.data] == [True] + [False] * (n_layers * heads - 1)


def test_layer_maps_of_zeros_have_a_scale():
    traces = traces_of([0], 1, 1)
    traces.pattern[:] = 0
    assert pl.plots.layer_maps(traces).data[0].zmax == 1


# The dynamics.


def test_dynamics_draw_layers_and_task_metrics_in_their_panels():
    names = ["count_check", "alpha_1", "attention_progress", "attention_progress@1", "attention_progress@1:alternative"]
    run = run_of([2.0] * 6, **{name: float(i) for i, name in enumerate(names)}, entropy=1.0)
    figure = pl.plots.dynamics(run)
    assert titles(figure) == ["loss (nats)", "accuracy", "repetition and collapse", "attention progress"]
    axes = {trace.name: trace.yaxis for trace in figure.data}
    assert axes == {"loss": "y", **dict(zip(names, ["y2", "y3", "y4", "y4", "y4"]))}
    assert [set(y_of(figure, name)) for name in names] == [{0}, {1}, {2}, {3}, {4}]
    lines = {(t.line.color, t.line.dash) for t in figure.data if t.yaxis == "y4"}
    assert len(lines) == 3


def test_dynamics_give_an_extra_metric_a_panel():
    run = run_of([2.0] * 6, entropy=[1.0, np.nan, 1.2, 1.3, 1.4, 1.5], sequence_log_prob=-3.0, position_accuracy=None)
    figure = pl.plots.dynamics(run, extra=["entropy", "sequence_log_prob"])
    assert titles(figure) == ["loss (nats)", "entropy (nats)", "sequence_log_prob (nats)"]
    np.testing.assert_array_equal(named(figure)["entropy"].y, run.entropy.dropna())
    with pytest.raises(ValueError, match="alpha_1 was not recorded; add it to the metrics list"):
        pl.plots.dynamics(run, extra=["alpha_1"])


def test_lines_of_twelve_layers_differ():
    names = ["attention_progress", *(f"attention_progress@{i}" for i in range(12))]
    lines = curves.panels_of(names)["attention progress"].values()
    assert len({(line["color"], line.get("dash", "solid")) for line in lines}) == 13


@pytest.mark.parametrize(
    "draw",
    [
        lambda run: pl.plots.dynamics(run, extra=["entropy"]),
        lambda run: pl.plots.seeds([run, run]),
        lambda run: pl.plots.seeds({"a": [run], "b": [run] * 5}, ["entropy", "loss"]),
        lambda run: pl.plots.part_accuracy(run, Named()),
        lambda run: pl.plots.position_accuracy(run),
        lambda run: pl.plots.sites(run),
    ],
)
def test_figures_with_gaps_become_valid_json(draw):
    gap = [1.0, np.nan, 2.0, np.nan, 3.0, np.nan]
    lists = [[0.1, None], float("nan"), [0.2, 0.3]] * 2
    run = run_of(gap, entropy=gap, part_accuracy=lists, position_accuracy=lists)
    text = draw(run.assign(**{"collapse@unembed.hook_in": gap})).to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_extra_metric_is_drawn_at_its_measured_steps():
    metrics = pd.DataFrame({"loss": [3.0, 2.0, 1.0], "sharpness": [5.0, np.nan, 7.0]}, index=[0, 5, 10])
    line = pl.plots.dynamics(metrics, extra=["sharpness"]).data[-1]
    assert list(line.x) == [0, 10] and list(line.y) == [5.0, 7.0]
