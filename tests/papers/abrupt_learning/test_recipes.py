"""The recipes of arXiv 2506.13688: the paper's sizes, and that every one trains, resumes and is reported."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import plateaulens as pl
from plateaulens._io import write_tensors
from plateaulens.cli import main
from plateaulens.models.parameter_groups import parameters_of
from plateaulens.papers.abrupt_learning import recipes as plateau
from plateaulens.papers.abrupt_learning.paired_effects import effects
from plateaulens.papers.matrix_completion import recipes as matrices
from plateaulens.papers.quiet_features import recipes as quiet

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


def test_every_recipe_has_a_small_one_of_the_same_name():
    assert tuple(SIZES) == plateau.GROUPS["tasks"]
    every = plateau.RECIPES | quiet.RECIPES | matrices.RECIPES
    assert {type(recipe.task) for recipe in every.values()} == set(pl.tasks.TASKS.values())
    for recipes in (plateau, quiet, matrices):
        assert list(recipes.RECIPES) == list(recipes.SMALL_RECIPES)
    assert set(plateau.RECIPES) == {name for group in plateau.GROUPS.values() for name in group}


@pytest.mark.parametrize("name", SIZES)
def test_recipes_have_the_sizes_of_the_paper(name):
    recipe, model = plateau.RECIPES[name], plateau.RECIPES[name].model_config(seed=3)
    sizes = (model.d_vocab, model.n_ctx, recipe.task.n_targets, model.n_layers, recipe.train.steps)
    assert (*sizes, recipe.train.grad_clip) == SIZES[name]
    assert (model.d_model, model.n_heads, model.d_mlp, model.attention, model.seed) == (256, 1, 1024, "linear", 3)
    assert (recipe.train.batch_size, recipe.train.lr, recipe.train.optimizer) == (256, 1e-4, "adam")


@pytest.fixture
def tiny(monkeypatch):
    """The small recipes with ten steps of width 16."""
    for name, recipe in plateau.SMALL_RECIPES.items():
        learning = replace(recipe.train, steps=10, batch_size=8, warmup=min(recipe.train.warmup, 3))
        short = replace(
            recipe, model={**recipe.model, "d_model": 16}, train=learning, from_step=5 if recipe.from_step else 0
        )
        monkeypatch.setitem(plateau.SMALL_RECIPES, name, short)


@pytest.mark.parametrize("name", SIZES)
def test_every_small_recipe_trains_and_is_reported(name, tiny, tmp_path):
    done = CliRunner().invoke(main, ["reproduce", name, "--small", "--seeds", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    run = pl.Run(tmp_path / f"{name}-0")
    assert run.steps == [0, 5, 10] and list(run.metrics.index) == [0, 5, 10]
    assert set(run.task.metrics) <= set(run.metrics) and run.task == plateau.SMALL_RECIPES[name].task
    assert "analytic plateau" in (run.path / "report.html").read_text()
    assert plateau.summary(run)["loss end"] == run.metrics.loss[10]


def test_reproduce_continues_and_raises_for_foreign_runs(tiny, tmp_path):
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
        plateau.SMALL_RECIPES["reverse"].record(tmp_path / "copy-0")
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


# Changes of the moving-window sum.


def test_changes_have_the_sizes_of_the_paper():
    recipes = plateau.RECIPES
    assert {name: recipes[name].scale for name in recipes if name.startswith("scale")} == {
        **{f"scale-{c}": float(c) for c in ("0.2", "0.5", "2.5", "10")},
        **{f"scale-10-from-{t}": 10.0 for t in (25, 50, 75, 100)},
    }
    assert [recipes[f"scale-10-from-{t}"].from_step for t in (25, 50, 75, 100)] == [25, 50, 75, 100]
    assert [recipes[f"scale-{c}"].train.steps for c in ("0.2", "0.5", "2.5", "10")] == [2000, 2000, 400, 400]
    assert plateau.SMALL_RECIPES["scale-0.2"].train.steps == 3000  # as many times its control's
    assert all(recipes[name].task == recipes["mws"].task for name in plateau.GROUPS["changes"])
    muon = recipes["muon"].train
    assert (muon.optimizer, muon.lr, muon.momentum, muon.adam_lr) == ("muon", 0.02, None, None)
    assert (recipes["warmup-cosine"].train.warmup, recipes["warmup-cosine"].train.schedule) == (200, "cosine")
    assert recipes["softmax"].model == {"attention": "softmax"} and recipes["muon-init-10"].model == {
        "init_scale": 10.0
    }


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """All changes with one seed, ten steps each."""
    out = tmp_path_factory.mktemp("changes")
    with pytest.MonkeyPatch.context() as patch:
        for name in plateau.GROUPS["changes"]:
            recipe = plateau.SMALL_RECIPES[name]
            learning = replace(recipe.train, steps=10, batch_size=8, warmup=min(recipe.train.warmup, 3))
            late = 5 if recipe.from_step else 0
            short = replace(recipe, model={**recipe.model, "d_model": 16}, train=learning, from_step=late)
            patch.setitem(plateau.SMALL_RECIPES, name, short)
        yield dict(plateau.reproduce(["changes"], out, seeds=1, small=True))


@pytest.mark.parametrize("name", [name for name in plateau.GROUPS["changes"] if name != "mws"])
def test_every_change_alters_the_training(changed, name):
    run, control = changed[name], changed["mws"]
    late = 5 if "from" in name else 0
    assert run.finished and list(run.metrics.index) == [t for t in (0, 5, 10) if t >= late]
    assert run.metrics.loss[10] != control.metrics.loss[10]
    assert len(run.config["interventions"]) == len(plateau.SMALL_RECIPES[name].changes)
    assert all(entry["from"] == late for entry in run.config["interventions"])


@pytest.mark.parametrize("name", [n for n in plateau.GROUPS["changes"] if n.split("-")[0] in ("optimal", "random")])
def test_frozen_parts_stay_and_optimal_ones_equal_the_donors(changed, name):
    run, part = changed[name], name.split("-")[1]
    donor = pl.Run(run.path.parent / "mws-1").model(10) if name.startswith("optimal") else run.new_model()
    fixed = parameters_of(donor, part)
    for step in run.steps:
        now = run.model(step)
        assert all(torch.equal(p, fixed[n]) for n, p in parameters_of(now, part).items())
    others = [n for n, _ in now.named_parameters() if n not in fixed]
    assert others and not any(torch.equal(now.get_parameter(n), run.model(0).get_parameter(n)) for n in others)


def test_late_change_shares_its_first_steps_with_the_control(changed):
    control, run = changed["mws"], changed["scale-10-from-25"]
    past = pl.Run(f"{run.path}-past")
    assert past.steps == [0, 5] and not past.config["interventions"]
    for name, values in control.weights(5).items():
        assert torch.equal(values, past.weights(5)[name]) and torch.equal(values, run.weights(5)[name])
    assert past.metrics.loss.loc[[0, 5]].equals(control.metrics.loss.loc[[0, 5]])
    assert run.metrics.loss[5] != control.metrics.loss[5]  # measured under the change


@pytest.mark.parametrize("name", ["optimal-KQ", "scale-10-from-25"])
def test_change_killed_before_its_first_metrics_resumes(changed, name, tmp_path):
    whole = changed[name]
    for path in whole.path.parent.glob(f"{name}-0*"):
        shutil.copytree(path, tmp_path / path.name)
    cut = tmp_path / whole.path.name
    shutil.copytree(whole.path.parent / "mws-1", tmp_path / "mws-1")
    shutil.rmtree(cut / "checkpoints")
    (cut / "metrics.jsonl").unlink()
    for state in (cut / "state").iterdir():
        state.unlink()
    late = 5 if "from" in name else 0
    training = pl.train(whole.model(late), whole.task, whole.train_config)
    state = training.state_dict()
    if late:
        state = pl.Run(f"{whole.path}-past").rewind()
    write_tensors(cut / "state" / f"{late:06d}.safetensors", state)
    pl.resume(cut, progress=False)
    assert (cut / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_past_with_another_from_step_raises(tiny, tmp_path):
    late = replace(plateau.SMALL_RECIPES["scale-10-from-25"], from_step=4)
    late.record(tmp_path / "run", progress=False)
    shutil.rmtree(tmp_path / "run")
    later = replace(late, from_step=6)
    with pytest.raises(ValueError, match="run-past ends at step 4, not 6; remove it"):
        later.record(tmp_path / "run", progress=False)
    shutil.rmtree(tmp_path / "run-past")
    assert later.record(tmp_path / "run", progress=False).config["record"]["start"] == 6


def test_recipe_refuses_a_run_of_another_change(changed, tmp_path):
    run = changed["scale-10"]
    recipe = replace(plateau.SMALL_RECIPES["scale-10"], model={"d_model": 16}, train=replace(run.train_config, seed=0))
    assert recipe.record(run.path).finished
    with pytest.raises(ValueError, match="another interventions"):
        replace(recipe, scale=2.0).record(run.path)
    with pytest.raises(ValueError, match="pass donor="):
        replace(recipe, scale=None, frozen=("KQ",), optimal=True).record(tmp_path / "new")
    created = {"task": recipe.task, "model": run.new_model(), "train": run.train_config}
    with pytest.raises(ValueError, match="bare has no checkpoints"):
        frozen = replace(recipe, scale=None, frozen=("KQ",), optimal=True)
        frozen.record(tmp_path / "new", donor=pl.Run.create(tmp_path / "bare", **created))
    with pytest.raises(ValueError, match="another interventions and first step"):
        recipe.record(tmp_path / "bare")  # not made by `record`
    with pytest.raises(ValueError, match="give scale"):
        replace(recipe, scale=None, from_step=3)
    with pytest.raises(ValueError, match="name these parts"):
        replace(recipe, optimal=True)


def test_effects_are_paired_by_seed(changed, tmp_path):
    curves = {("mws", 0): 10, ("mws", 1): 5, ("scale-10", 0): 5, ("scale-10", 1): 5, ("scale-0.2", 0): None}
    for (name, seed), drop in curves.items():
        source = changed[name].path if seed == 0 else changed["mws"].path.parent / "mws-1"
        copy = shutil.copytree(source, tmp_path / f"{name}-{seed}")
        kept = json.loads((copy / "run.json").read_text())
        kept["train"]["seed"] = seed
        (copy / "run.json").write_text(json.dumps(kept))
        rows = [
            {
                "step": t,
                "loss": 1.0 if drop is not None and t >= drop else 2.9,
                "collapse": t / 10,
                "repetition": seed / 2,
            }
            for t in (0, 5, 10)
        ]
        (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = effects(tmp_path)
    assert list(table.index) == ["mws", "scale-0.2", "scale-10"]
    assert list(table.dropped) == [2, 0, 2] and list(table["drop"]) == [7.5, float("inf"), 5.0]
    assert table.loc["scale-10", "d drop"].differences.tolist() == [-5.0, 0.0]
    assert table.loc["scale-10", "peak collapse"] == 1.0 and table.loc["scale-10", "peak repetition"] == 0.25
    assert table.loc["scale-10", "d peak repetition"].differences.tolist() == [0.0, 0.0]
    assert table.loc["scale-0.2", "d drop"] is None  # one pair says nothing
    with pytest.raises(ValueError, match="no finished run mws-0"):
        effects(tmp_path / "nowhere")
