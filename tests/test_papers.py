"""The recipes of arXiv 2506.13688: the paper's sizes, and that every one trains, resumes and is reported."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import plateaulens as pl
from plateaulens.cli import main
from plateaulens.papers import plateau

# Vocabulary, positions, tokens fed, layers, steps, clipping: the table of the released configs.
SIZES = {
    "mws": (18, 33, 32, 1, 400, None),
    "mix": (18, 30, 29, 1, 5000, None),
    "prefix": (18, 33, 32, 1, 1000, None),
    "addition": (12, 15, 14, 1, 10000, None),
    "permutation": (33, 50, 49, 2, 2000, None),
    "histogram": (17, 33, 32, 2, 5000, 1.0),
    "copy": (17, 33, 32, 1, 100, None),
    "reverse": (17, 33, 32, 1, 100, None),
    **dict.fromkeys(("repeat", "repeat-2", "repeat-4"), (18, 33, 32, 1, 200, None)),
}


def test_every_recipe_has_its_size_and_its_small_twin():
    assert SIZES.keys() == plateau.RECIPES.keys() == plateau.SMALL.keys()
    assert {type(r.task) for r in plateau.RECIPES.values()} == set(pl.TASKS.values())


@pytest.mark.parametrize("name", SIZES)
def test_recipes_are_those_of_the_paper(name):
    recipe, model = plateau.RECIPES[name], plateau.RECIPES[name].model_config(seed=3)
    sizes = (model.d_vocab, model.n_ctx, recipe.task.n_targets, model.n_layers, recipe.train.steps)
    assert (*sizes, recipe.train.grad_clip) == SIZES[name]
    assert (model.d_model, model.n_heads, model.d_mlp, model.attention, model.seed) == (256, 1, 1024, "linear", 3)
    assert (recipe.train.batch_size, recipe.train.lr, recipe.train.optimizer) == (256, 1e-4, "adam")


@pytest.fixture
def tiny(monkeypatch):
    """The small recipes with ten steps of width 16."""
    for name, recipe in plateau.SMALL.items():
        short = replace(recipe, model={"d_model": 16}, train=replace(recipe.train, steps=10, batch_size=8))
        monkeypatch.setitem(plateau.SMALL, name, short)


@pytest.mark.parametrize("name", SIZES)
def test_every_task_trains_and_is_reported(name, tiny, tmp_path):
    done = CliRunner().invoke(main, ["reproduce", name, "--small", "--seeds", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    run = pl.Run(tmp_path / f"{name}-0")
    assert run.steps == [0, 5, 10] and list(run.metrics.index) == [0, 5, 10]
    assert set(run.task.watch) <= set(run.metrics) and run.task == plateau.SMALL[name].task
    assert "analytic plateau" in (run.path / "report.html").read_text()
    assert plateau.summary(run)["loss end"] == run.metrics.loss[10]


def test_reproduce_goes_on_and_refuses_foreign_runs(tiny, tmp_path):
    [(name, first)] = plateau.reproduce(["copy"], tmp_path, seeds=1, small=True)
    before = (first.path / "metrics.jsonl").read_bytes()
    pairs = list(plateau.reproduce(["copy"], tmp_path, seeds=2, small=True))
    assert [(n, run.path.name) for n, run in pairs] == [("copy", "copy-0"), ("copy", "copy-1")]
    assert pairs[0][1].metrics.loss[10] != pairs[1][1].metrics.loss[10]
    assert (first.path / "metrics.jsonl").read_bytes() == before and name == "copy"
    old = json.loads((first.path / "run.json").read_text())
    for newer in ("momentum", "adam_lr", "warmup"):  # fields that an older version did not write
        del old["train"][newer]
    (first.path / "run.json").write_text(json.dumps(old))
    assert [run.path for _, run in plateau.reproduce(["copy"], tmp_path, seeds=1, small=True)] == [first.path]
    with pytest.raises(ValueError, match="another task;"):
        plateau.SMALL["reverse"].record(tmp_path / "copy-0")
    with pytest.raises(ValueError, match="did you mean 'reverse'"):
        plateau.reproduce(["revers"], tmp_path)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        plateau.reproduce(["copy"], tmp_path, seeds=0)


@pytest.mark.parametrize(
    "words",
    [
        "permutation --compose 2 --n 4",
        "prefix --no-repeat --n 5",
        "addition --no-reverse --n 1",
        "mix --mix 124_stair_653 --n 16",
        "repeat --k 3 --n 6",
        "histogram --max-value 3 --n 4 --attention softmax --layers 3",
        "permutation --n 4 --layers 3",
        "permutation --n 4 --layers 1",
        "histogram --n 4 --layers 1",
        "mws --optimizer muon --momentum 0",
        "mws --optimizer muon --lr 0.02 --schedule wsd --warmup 2 --decay 3",
    ],
)
def test_every_variant_trains_from_the_shell(words, tiny, tmp_path):
    done = CliRunner().invoke(main, ["train", *words.split(), "--small", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert pl.Run(tmp_path / "run").last == 10
