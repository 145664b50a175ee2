"""A recording that is killed at any moment, again and again, ends in the bytes of one that was not."""

import json
import random
import shutil
import signal
import time
from contextlib import nullcontext
from functools import cache

import pytest
import torch

import plateaulens as pl
from helpers import run_in_child
from plateaulens.interventions import INTERVENTIONS
from plateaulens.papers.recipe import Recipe

TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
EVAL_BATCH = TASK.sample(16, seed=1)
CFG = pl.TrainConfig(steps=60, batch_size=16, lr=1e-3)


def build(**fields):
    return pl.Transformer(pl.ModelConfig.for_task(TASK, **(dict(d_model=16) | fields)))


def work(path, cfg=CFG, changes=(), every=3, **model):
    """What the child does: start the recording, or go on with it."""
    torch.set_num_threads(1)
    try:
        pl.resume(path, progress=False)
    except (FileNotFoundError, ValueError) as error:
        if "not a run" not in str(error) and "no recording" not in str(error):
            raise
        training = pl.train(build(**model), TASK, cfg)
        with pl.intervene(training.model, *changes) if changes else nullcontext():
            pl.record(training, path, EVAL_BATCH, every=every, save_every=7, overwrite=True, progress=False)


def contents(folder):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    configs = {name: json.loads(files.pop(name)) for name in [*files] if name.endswith("run.json")}
    for config in configs.values():
        config.pop("created")
        config.pop("git")  # somebody may commit while the tests run
    return files, configs


@cache
def straight(folder):
    """The uninterrupted run, and how long it takes."""
    start = time.monotonic()
    assert run_in_child(folder / "whole", None, None, work)
    return contents(folder / "whole"), time.monotonic() - start


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Imports first, in the parent: children that each spend seconds on them would be killed before any work.
    work(tmp_path_factory.mktemp("warm") / "run")
    yield straight(tmp_path_factory.mktemp("kill"))
    torch.set_num_threads(threads)


def killed_until_finished(folder, uninterrupted, sig, seed):
    expected, seconds = uninterrupted
    moments, kills = random.Random(seed), 0
    while not run_in_child(folder / "run", moments.uniform(0.02, 0.6) * seconds, sig, work):
        kills += 1
        assert kills < 200, "no progress between kills"
    compare(contents(folder / "run"), expected)


def compare(found, expected):
    (files, configs), (expected_files, expected_configs) = found, expected
    assert configs == expected_configs
    assert sorted(files) == sorted(expected_files)
    assert [name for name in files if files[name] != expected_files[name]] == []


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("seed", range(3))
def test_resume_after_repeated_sigkill_gives_same_bytes(tmp_path, uninterrupted, sig, seed):
    killed_until_finished(tmp_path, uninterrupted, sig, seed)


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("seed", range(3, 18))
def test_resume_after_many_sigkills_gives_same_bytes(tmp_path, uninterrupted, sig, seed):
    killed_until_finished(tmp_path, uninterrupted, sig, seed)


def test_uninterrupted_run_has_every_file(uninterrupted):
    (files, _), _ = uninterrupted
    assert {f"checkpoints/{t:06d}.safetensors" for t in [*range(0, 60, 7), 60]} < set(files)
    assert files["metrics.jsonl"].count(b"\n") == 21


# Every optimizer, schedule and change.

OPTIMIZERS = {
    "adam": {},
    "adamw": dict(optimizer="adamw", weight_decay=0.1),
    "sgd": dict(optimizer="sgd", momentum=0.9, lr=0.1),
    "muon": dict(optimizer="muon", adam_lr=1e-3, weight_decay=0.1),
}
SCHEDULES = {
    "constant": {},
    "cosine": dict(schedule="cosine", warmup=4, grad_clip=0.5),
    "wsd": dict(schedule="wsd", warmup=5, decay=9),
}
TRAINS = {
    f"{optimizer} {schedule}": pl.TrainConfig(**(dict(steps=20, batch_size=8, lr=1e-2) | fields | more))
    for optimizer, fields in OPTIMIZERS.items()
    for schedule, more in SCHEDULES.items()
}


def under(*changes, **model):
    return changes, model


def the_changes():
    """Every change that can act in a training, and the model it acts on."""
    two = dict(n_heads=2, n_layers=2)
    seen = pl.trace(build(seed=9, **two), EVAL_BATCH)
    z, resid = "blocks.1.attn.hook_z", "blocks.0.hook_resid_mid"
    return {
        "ScaleAttention": under(pl.ScaleAttention(TASK, factor=3.0)),
        "ScaleAttention of softmax": under(pl.ScaleAttention(TASK, factor=3.0, renormalize=True), attention="softmax"),
        "OptimalAttention": under(pl.OptimalAttention(TASK), **two),
        "FixAttention": under(pl.FixAttention(seen.pattern().mean("batch")), **two),
        "AblateHeads mean": under(pl.AblateHeads([(0, 1), (1, 0)], "mean"), **two),
        "AblateHeads uniform": under(pl.AblateHeads([(0, 1)], "uniform"), **two),
        "AblateHeads zero": under(pl.AblateHeads([(1, 1)], "zero"), **two),
        "Ablate mean": under(pl.Ablate(resid, "mean", positions=[4, 5]), **two),
        "Ablate zero": under(pl.Ablate(z, "zero", heads=[1]), **two),
        "Ablate resample": under(pl.Ablate(z, "resample", seed=4), **two),
        "Patch": under(pl.Patch(resid, seen.cache[resid][0], positions=[4, 6]), **two),
        "Steer": under(pl.Steer(resid, torch.linspace(-1, 1, 16), factor=0.5), **two),
        "Project": under(
            pl.interventions.Project(resid, torch.tensor([[4, 6]]), torch.eye(16)[:2, None], torch.ones(2, 1)), **two
        ),
        "Freeze": under(pl.Freeze(["KQ", "blocks.0.mlp.*"])),
        "two changes": under(pl.ScaleAttention(TASK, factor=0.2), pl.Freeze("mlp")),
    }


CHANGES = the_changes()
SMALL = dict(task=TASK, model=dict(d_model=16))
RECIPES = {
    "grafted start": Recipe(**SMALL, train=TRAINS["adamw wsd"], frozen=("KQ",), optimal=True),
    "late change": Recipe(**SMALL, train=TRAINS["muon wsd"], scale=5.0, from_step=9),
    "late change, part frozen": Recipe(**SMALL, train=TRAINS["sgd cosine"], scale=5.0, from_step=11, frozen=("mlp",)),
}


def job(name, donor):
    """What the children do: an optimizer with a schedule, a change with one of these pairs, or a recipe."""
    if name in RECIPES:
        recipe, options = RECIPES[name], dict(eval_batch=EVAL_BATCH, every=4, save_every=7, progress=False)
        return lambda path: recipe.record(path, donor=donor if recipe.optimal else None, **options)
    if name in CHANGES:
        # Steps of 5 through the 12 pairs: all of them, and neighbors share neither optimizer nor schedule.
        cfg = [*TRAINS.values()][5 * [*CHANGES].index(name) % 12]
        changes, model = CHANGES[name]
        return lambda path: work(path, cfg, changes, every=4, **model)
    return lambda path: work(path, TRAINS[name], every=4)


@pytest.fixture(scope="module")
def donor(uninterrupted, tmp_path_factory):
    training = pl.train(build(seed=3), TASK, TRAINS["adam constant"])
    return pl.record(training, tmp_path_factory.mktemp("donor") / "run", EVAL_BATCH, progress=False)


def test_every_intervention_has_a_kill_test():
    assert {type(change).__name__ for changes, _ in CHANGES.values() for change in changes} == set(INTERVENTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINS, *CHANGES, *RECIPES])
def test_resume_under_interventions_after_sigkill_gives_same_bytes(tmp_path, donor, name):
    work = job(name, donor)
    start = time.monotonic()
    assert run_in_child(tmp_path / "whole" / "run", None, None, work)
    expected, seconds = contents(tmp_path / "whole"), time.monotonic() - start
    moments, kills, finished = random.Random(name), 0, 0
    while kills < 3:
        if run_in_child(tmp_path / "killed" / "run", moments.uniform(0, 0.8) * seconds, signal.SIGKILL, work):
            compare(contents(tmp_path / "killed"), expected)
            shutil.rmtree(tmp_path / "killed")
            kills, finished = 0, finished + 1
            assert finished < 50, "too quick to be killed three times"
        kills += any((tmp_path / "killed").rglob("run.json"))  # not one that struck before anything was written
    assert run_in_child(tmp_path / "killed" / "run", None, None, work)
    compare(contents(tmp_path / "killed"), expected)
