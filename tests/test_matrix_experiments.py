"""The experiments on matrix completion by name, their figures and the shell, on the run that is shipped."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import plateaulens as pl
from plateaulens.analysis import completions
from plateaulens.cli import main
from plateaulens.papers.matrix_experiments import EXPERIMENTS, Setting

RUN = pl.Run(pl.shipped("matrix-4x4"))


@pytest.fixture
def run(tmp_path):
    shutil.copytree(RUN.path, tmp_path / "run")
    return pl.Run(tmp_path / "run")


def said(*arguments):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return done.exit_code, done.output


def test_the_shipped_run_shows_plateau_and_drop():
    plateau = pl.find_plateau(RUN)
    assert plateau.level == pytest.approx(0.3 * (7 / 12) ** 2)
    assert plateau.start < 500 and 3500 < plateau.drop < 5000
    found = {step: pl.measure(RUN.model(step), RUN.held(), ["loss", "masked_loss"]) for step in RUN.steps}
    for step, values in found.items():  # the checkpoints are those of the curve
        assert values["loss"].item() == pytest.approx(RUN.metrics.loss[step], rel=1e-4)
        assert values["masked_loss"].item() == pytest.approx(RUN.metrics.masked_loss[step], rel=1e-4)
    assert found[3500]["loss"].item() == pytest.approx(plateau.level, rel=0.03)
    assert found[10_000]["masked_loss"] < found[3500]["masked_loss"] / 3


def test_completions_are_the_model_s_cell_by_cell():
    batch = RUN.task.sample(3, seed=0)
    found = completions(RUN, batch, [0, 10_000])
    expected = pl.trace(RUN.model(10_000), batch, ["outputs"]).outputs
    np.testing.assert_allclose(found.predicted.sel(step=10_000, matrix=2), expected[2].view(4, 4))
    np.testing.assert_allclose(found.true.sel(matrix=1, row=2, col=3), batch.values[1, 11])
    assert found.observed.sel(matrix=0).values.reshape(-1).tolist() == batch.observed[0].tolist()


def test_figures_draw_what_was_measured():
    figure = pl.plots.completion(RUN, pl.find_plateau(RUN))
    drawn = {trace.name: np.asarray(trace.y) for trace in figure.data}
    for name in ("loss", "observed_loss", "masked_loss", "masked_size"):
        np.testing.assert_allclose(drawn[name], RUN.metrics[name])
    assert any(shape.y0 == pytest.approx(RUN.task.loss_plateau()) for shape in figure.layout.shapes)
    found = completions(RUN, RUN.task.sample(2, seed=0))
    figure = pl.plots.matrix_steps(found, 1)
    assert [frame.name for frame in figure.frames] == [str(step) for step in RUN.steps]
    np.testing.assert_allclose(figure.frames[3].data[0].z, found.predicted[3, 1])
    assert len(figure.layout.shapes) == 3 * int((~found.observed[1]).sum())
    assert np.isnan(np.asarray(figure.data[0].z)[~found.observed[1].values]).all()
    with pytest.raises(ValueError, match="matrix must lie in 0..1"):
        pl.plots.matrix_steps(found, 2)
    with pytest.raises(ValueError, match="observed_loss, masked_loss was not recorded"):
        pl.plots.completion(RUN.metrics[["loss"]])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_gives_tables_and_figures(name):
    setting = Setting.of(RUN, n=64)
    assert setting.steps == {"before": 3500, "after": 10_000}
    shown = EXPERIMENTS[name](setting)
    assert shown and all(section.figure.data for section in shown)
    assert any(char.isdigit() for section in shown for char in section.said)


def test_the_shell_prints_tables_and_writes_a_page(run):
    code, output = said("matrix", "switch", run.path, "--n", 32)
    assert code == 0, output
    assert "before none" in output and output.strip().endswith("switch.html")
    page = (run.path / "matrix" / "switch.html").read_text()
    assert "Plotly.newPlot" in page and "before none" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["swich", "RUN"], "did you mean 'switch'"),
        (["switch", "nowhere"], "is not a run"),
        (["switch", "RUN", "--before", "77"], "no checkpoint of step 77"),
        (["switch", "OTHER"], "trained copy"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, says):
    if "OTHER" in arguments:
        task = pl.Copy(n=2, max_value=3)
        model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=8))
        cfg = pl.TrainConfig(steps=1, batch_size=2)
        pl.record(pl.train(model, task, cfg), tmp_path / "other", task.sample(2, seed=0), progress=False)
    paths = {"RUN": run.path, "OTHER": tmp_path / "other"}
    code, output = said("matrix", *(paths.get(a, a) for a in arguments))
    assert code == 2 and says in output and len(output.strip().splitlines()) == 1


def test_a_plateau_without_a_checkpoint_must_be_said(run):
    (run.path / "checkpoints" / "003500.safetensors").unlink()
    with pytest.raises(ValueError, match="no saved step .* lies on its plateau"):
        Setting.of(run)
    assert Setting.of(run, before=4500).before == 4500
