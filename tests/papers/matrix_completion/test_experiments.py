"""Experiments on the bundled run of matrix completion, their figures and their commands."""

import json
import shutil
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from click.testing import CliRunner

import plateaulens as pl
from plateaulens.cli import main
from plateaulens.cli.matrix_completion import DESCRIPTIONS
from plateaulens.models.config import bert
from plateaulens.papers.matrix_completion import experiments, tables
from plateaulens.papers.matrix_completion.completions import completions
from plateaulens.papers.matrix_completion.experiments import (
    EXPERIMENTS,
    ExperimentConfig,
    attention,
    distributions,
    ranks,
    shift,
)
from plateaulens.papers.matrix_completion.head_atlas import head_atlas
from plateaulens.papers.matrix_completion.negated_patching import patch_negated
from plateaulens.papers.matrix_completion.out_of_distribution import clipped_share

RUN = pl.Run(pl.lm.bundled("matrix-4x4"))


@pytest.fixture
def run(tmp_path):
    shutil.copytree(RUN.path, tmp_path / "run")
    return pl.Run(tmp_path / "run")


def run_command(*arguments):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return done.exit_code, done.output


def test_bundled_run_has_a_plateau_and_a_drop():
    plateau = pl.find_plateau(RUN)
    assert plateau.level == pytest.approx(0.3 * (7 / 12) ** 2)
    assert plateau.start < 500 and 3500 < plateau.drop < 5000
    found = {step: pl.measure(RUN.model(step), RUN.eval_batch(), ["loss", "masked_loss"]) for step in RUN.steps}
    for step, values in found.items():  # the checkpoints are those of the curve
        assert values["loss"].item() == pytest.approx(RUN.metrics.loss[step], rel=1e-4)
        assert values["masked_loss"].item() == pytest.approx(RUN.metrics.masked_loss[step], rel=1e-4)
    assert found[3500]["loss"].item() == pytest.approx(plateau.level, rel=0.03)
    assert found[10_000]["masked_loss"] < found[3500]["masked_loss"] / 3


def test_completions_equal_the_models_predictions():
    batch = RUN.task.sample(3, seed=0)
    found = completions(RUN, batch, [0, 10_000])
    expected = pl.trace(RUN.model(10_000), batch, ["outputs"]).outputs
    np.testing.assert_allclose(found.predicted.sel(step=10_000, matrix=2), expected[2].view(4, 4))
    np.testing.assert_allclose(found.true.sel(matrix=1, row=2, col=3), batch.values[1, 11])
    assert found.observed.sel(matrix=0).values.reshape(-1).tolist() == batch.observed[0].tolist()


def test_figures_have_the_measured_values():
    figure = pl.papers.matrix_completion.plots.completion(RUN, pl.find_plateau(RUN))
    drawn = {trace.name: np.asarray(trace.y) for trace in figure.data}
    for name in ("loss", "observed_loss", "masked_loss", "masked_size"):
        np.testing.assert_allclose(drawn[name], RUN.metrics[name])
    assert any(shape.y0 == pytest.approx(RUN.task.loss_plateau()) for shape in figure.layout.shapes)
    found = completions(RUN, RUN.task.sample(2, seed=0))
    figure = pl.papers.matrix_completion.plots.matrix_steps(found, 1)
    assert [frame.name for frame in figure.frames] == [str(step) for step in RUN.steps]
    np.testing.assert_allclose(figure.frames[3].data[0].z, found.predicted[3, 1])
    assert len(figure.layout.shapes) == 3 * int((~found.observed[1]).sum())
    assert np.isnan(np.asarray(figure.data[0].z)[~found.observed[1].values]).all()
    with pytest.raises(ValueError, match="matrix must be in 0..1"):
        pl.papers.matrix_completion.plots.matrix_steps(found, 2)
    with pytest.raises(ValueError, match="observed_loss, masked_loss was not recorded"):
        pl.papers.matrix_completion.plots.completion(RUN.metrics[["loss"]])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_gives_tables_and_figures(name):
    config = ExperimentConfig.of(RUN, n=64)
    assert config.steps == {"before": 3500, "after": 10_000}
    shown = EXPERIMENTS[name](config)
    assert shown and all(section.figure.data for section in shown)
    assert any(char.isdigit() for section in shown for char in section.text)


def table_of(text):
    """The rows of a printed table, split at white space."""
    return [line.split() for line in text.splitlines()]


def test_first_layer_patches_at_either_cells_change_the_sign():
    found = patch_negated(RUN.model(10_000), RUN.task.sample(512, seed=7))
    far, near = found.unpatched.sel(cells="masked").values
    first = found.distance.sel(layer=0, cells="masked")
    assert far > 10 * near
    for at in ("masked", "observed"):  # either alone turns -X into X
        assert first.sel(positions=at, to="X") < 0.3 < 0.8 < first.sel(positions=at, to="-X")
    assert first.sel(positions="all", to="-X") < 0.3 < 0.8 < first.sel(positions="all", to="X")  # both do not
    last = found.distance.sel(layer=1, positions="masked", cells="masked")  # carries a part of it
    assert last.min() > 0.3


def test_attention_table_has_the_category_that_labels_the_head():
    config, wider = ExperimentConfig.of(RUN, n=64), 0
    tables = [section.text for section in attention(config)[::2]]
    for mask, said in zip(("random", "row", "column"), tables, strict=True):
        atlas = head_atlas(RUN.model(10_000), config.batch(mask=mask)).stack(at=["layer", "head"])
        for i, row in enumerate(table_of(said)[2:]):
            one = atlas.isel(at=i)
            label, largest = str(one.label.item()), str(one.category[one.ratio.fillna(0).argmax()].item())
            name = largest if label == "none" else label
            wider += name != largest
            assert " ".join(row[:-2]).endswith(f"{label} {name}")
            own = one.sel(category=name)
            assert [float(x) for x in row[-2:]] == pytest.approx([own.ratio.item(), own.mass.item()], abs=1e-4)
    assert wider  # of a wider category with nearly the largest ratio, and not of the largest


def test_shift_varies_rows_and_columns_without_clipping(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.plots, "ood_losses", lambda losses, x: go.Figure())  # slow, and drawn above
    task = pl.tasks.MatrixCompletion(rows=2, cols=4, rank=1, factors="bounded", precision=0.1, limit=1.0)
    for rows in (1, 2):
        size = replace(task, rows=rows)
        model = pl.Transformer(pl.ModelConfig.for_task(size, **bert(8, 1, 2)))
        eval_batch, cfg = size.sample(4, seed=0), pl.TrainConfig(steps=2, batch_size=4)
        run = pl.record(pl.train(model, size, cfg), tmp_path / str(rows), eval_batch, save_every=1, progress=False)
        sweeps = {section.title: section.text for section in shift(ExperimentConfig.of(run, before=0, n=8))}
        assert ("Other rows" in sweeps) == (rows == 2)  # of one row there are no fewer
        swept = {title: [row[0] for row in table_of(said)[3:]] for title, said in sweeps.items()}
        assert swept["Other columns"] == ["2", "3", "4"]
        assert swept["Other rank"] == [str(rank) for rank in range(1, rows + 1)]
        assert all("zero_loss" in said and "clipped" in said for said in sweeps.values())
        assert all(float(row[-1]) == 0 for row in table_of(sweeps["Other rank"])[3:])
    assert [f"{p:.2f}" for p in np.arange(0.1, 0.61, 0.05)] == swept["Other probability that a cell is masked"]


def test_distributions_are_the_papers_within_the_limit():
    paper = distributions(pl.tasks.MatrixCompletion())
    assert {(t.factors, t.scale) for t in paper.values()} == {("uniform", 1), ("gaussian", 0.5), ("laplace", 0.25)}
    narrow = distributions(pl.tasks.MatrixCompletion(rank=2, precision=0.1, limit=0.5, scale=0.5))
    assert set(narrow) == {"uniform 0.5", "gaussian 0.25", "laplace 0.125"}
    beyond = distributions(pl.tasks.MatrixCompletion(rank=2, precision=0.1, limit=0.5))
    assert set(beyond) == {"uniform 1", "bounded 0.5", "signs 0.5"}
    assert all(clipped_share(beyond[name]) == 0 for name in ("bounded 0.5", "signs 0.5"))
    spread = ranks(pl.tasks.MatrixCompletion(rows=3, cols=5, rank=2))
    assert list(spread) == [1, 2, 3] and all(rank * t.scale**2 == pytest.approx(2) for rank, t in spread.items())


def test_components_command_does_not_repeat_trainings(run):
    arguments = ("matrix", "components", run.path, "--steps", 3, "--only", "mlp", "--only", "attention")
    code, output = run_command(*arguments)
    assert code == 0, output
    folder = run.path / "matrix" / "components"
    assert {path.name for path in folder.iterdir()} == {"mlp", "attention"}
    assert "everything 4300 4550 10000 0.1000" in " ".join(output.split())
    parts = pl.Run(folder / "mlp")
    assert parts.steps[-1] == 3 and parts.train_config.seed == 1 and parts.config["graft"]["step"] == 10_000
    final = RUN.model(10_000)
    moved = {n for n, p in parts.model(3).named_parameters() if not torch.equal(p, final.get_parameter(n))}
    assert moved and all(".mlp." in name for name in moved)
    before = (folder / "mlp" / "metrics.jsonl").stat().st_mtime_ns
    assert run_command(*arguments)[0] == 0 and (folder / "mlp" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "Plotly.newPlot" in (run.path / "matrix" / "components.html").read_text()


def test_components_of_a_run_not_made_by_record(run):
    config = json.loads((run.path / "run.json").read_text())
    del config["record"]
    (run.path / "run.json").write_text(json.dumps(config))
    code, output = run_command("matrix", "components", run.path, "--steps", 3, "--only", "mlp")
    assert code == 0 and "everything 4300" in " ".join(output.split()), output
    log = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(log.replace("masked_loss", "mine"))
    code, output = run_command("matrix", "components", run.path, "--steps", 3, "--only", "attention")
    assert code == 2 and "has no masked_loss" in output and len(output.strip().splitlines()) == 1
    assert not (run.path / "matrix" / "components" / "attention").exists()


def test_every_experiment_has_a_command_with_an_example():
    assert list(DESCRIPTIONS) == list(EXPERIMENTS)
    for name in (*DESCRIPTIONS, "components"):
        code, output = run_command("matrix", name, "--help")
        assert code == 0 and f"Example: plateaulens matrix {name} runs/matrix-0" in " ".join(output.split())


def test_before_is_the_last_step_on_the_plateau_below_after():
    assert ExperimentConfig.of(RUN).before == 3500
    with pytest.raises(ValueError, match="no saved step"):
        ExperimentConfig.of(RUN, after=3500)


def test_tables_of_the_docs_are_written_from_runs(tmp_path, monkeypatch, capsys):
    rows = dict(line.rsplit(maxsplit=1) for line in tables.losses([RUN]).splitlines()[1:])
    assert rows["loss leaves"].strip() == "3900" and rows["drop"].strip() == "4550"
    on_plateau = RUN.metrics.loc[1000:3000].masked_loss.median()
    assert float(rows["masked_loss, plateau"]) == pytest.approx(on_plateau, abs=1e-4)
    short = replace(tables.RECIPE, train=replace(tables.RECIPE.train, steps=2))
    monkeypatch.setattr(tables, "RECIPE", short)
    tables.write_smaller(tmp_path, 1)
    out = capsys.readouterr().out
    assert all(name in out for name in tables.SMALLER_TASKS) and len(list((tmp_path / "smaller").iterdir())) == 3


def test_swap_command_prints_tables_and_writes_a_page(run):
    code, output = run_command("matrix", "swap", run.path, "--n", 32)
    assert code == 0, output
    assert "before none" in output and output.strip().endswith("swap.html")
    page = (run.path / "matrix" / "swap.html").read_text()
    assert "Plotly.newPlot" in page and "before none" in page
    for name, step in (("before", 3500), ("after", 10_000)):  # those that were used, not what was asked for
        assert f"<td>{name}</td><td>{step}</td>" in page


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["swop", "RUN"], "did you mean 'swap'"),
        (["swap", "nowhere"], "is not a run"),
        (["swap", "RUN", "--before", "77"], "no checkpoint of step 77"),
        (["swap", "OTHER"], "trained copy"),
        (["swap", "RUN", "--before", "10000", "--after", "10000"], "before must be a step below after"),
        (["attention", "RUN", "--before", "10000", "--after", "4500"], "got 10000 and 4500"),
        (["components", "RUN", "--only", "mpl"], "did you mean 'mlp'"),
        (["components", "RUN", "--seed", "0"], "seed 0 is the run's"),
        (["components", "OTHER"], "trained copy"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(run, tmp_path, arguments, says):
    if "OTHER" in arguments:
        task = pl.tasks.Copy(n=2, max_value=3)
        model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=8))
        cfg = pl.TrainConfig(steps=1, batch_size=2)
        pl.record(pl.train(model, task, cfg), tmp_path / "other", task.sample(2, seed=0), progress=False)
    paths = {"RUN": run.path, "OTHER": tmp_path / "other"}
    code, output = run_command("matrix", *(paths.get(a, a) for a in arguments))
    assert code == 2 and says in output and len(output.strip().splitlines()) == 1


def test_unknown_or_unsaved_plateau_needs_before(run):
    (run.path / "checkpoints" / "003500.safetensors").unlink()
    with pytest.raises(ValueError, match="no saved step .* is on its plateau"):
        ExperimentConfig.of(run)
    assert ExperimentConfig.of(run, before=4500).before == 4500
    config = json.loads((run.path / "run.json").read_text())
    config["task"]["mask"] = "row"  # of which no floor is known
    (run.path / "run.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"plateau's end is unknown for mask 'row'.*\(--before\)"):
        ExperimentConfig.of(pl.Run(run.path))
