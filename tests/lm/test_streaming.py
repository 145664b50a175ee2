"""Suites on a loopback Hub, evaluated with the real client: faults, limits on the disk, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch
from click.testing import CliRunner

import plateaulens as pl
from helpers import run_in_child
from loopback_hub import Hub, online
from plateaulens.lm import loading, weight_audit
from plateaulens.lm.suite import CLIENT_OVERHEAD

WATCH = ["collapse", "repetition"]
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(suite_folder, monkeypatch, tmp_path):
    """Pythia's names for the small suite, OLMo's for the same, and one whose step 1 serves step 128's weights."""
    monkeypatch.setenv("PLATEAULENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_audit, "_warned", set())
    step = {s: suite_folder / f"step{s}" for s in (0, 1, 16, 128)}
    names = {f"step{s}": folder for s, folder in step.items()}
    olmo = {"stage1-step0-tokens0B": step[0], "stage1-step150-tokens1B": step[16], "stage1-step600-tokens3B": step[128]}
    olmo["stage2-ingredient1-step150-tokens2B"] = step[1]
    repos = {
        "org/small": names,
        "EleutherAI/pythia-14m": names,
        "allenai/OLMo-2-1124-7B": olmo,
        "org/wrong": {**names, "step1": step[128]},
    }
    with Hub(repos) as hub:
        online(monkeypatch, hub.url)
        yield hub


def opened(name="org/small", **options):
    suite = pl.lm.from_hub(name, **options)
    suite.source.client.pause, suite.source.client.patience = 0.01, 5.0
    return suite


@pytest.fixture
def prompts(suite_folder):
    tokenizer = pl.lm.from_folder(suite_folder).tokenizer
    return pl.Batch.prompts(tokenizer(["Why?", "What floats on water?"])["input_ids"], 4)


@pytest.fixture
def expected(suite_folder, prompts, tmp_path):
    """The same steps as folders."""
    return pl.lm.evaluate(pl.lm.from_folder(suite_folder), tmp_path / "expected", prompts, WATCH, progress=False)


def same(done, expected, steps=(0, 1, 16, 128)):
    assert done.steps == list(steps)
    for step in steps:
        assert {**done.step(step)}["values"] == expected.step(step)["values"]
        assert done.step(step)["generated_text"] == expected.step(step)["generated_text"]


def test_steps_are_listed_without_a_download(hub):
    suite = pl.lm.pythia("14m")
    assert suite.steps == [0, 1, 16, 128] and suite.tokens(16) == 16 * 2_097_152
    assert suite.size(16) > 5_000 and not hub.requests("/resolve/")
    assert hub.requests("/refs") and len(hub.requests("/tree/")) == 1
    assert repr(suite) == "Checkpoints('EleutherAI/pythia-14m', 4 steps 0..128)"


def test_olmos_stages_and_tokens_are_resolved_by_step(hub, prompts, expected, tmp_path):
    suite = pl.lm.olmo2("7B")
    assert suite.steps == [0, 150, 600] and suite.revision(150) == "stage1-step150-tokens1B"
    assert suite.tokens(600) == 3 * 10**9
    annealed = pl.lm.olmo2("7b", stage=2)
    assert annealed.steps == [150] and annealed.revision(150).startswith("stage2-ingredient1")
    done = pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [600], progress=False)
    assert done.step(600)["values"] == expected.step(128)["values"]


def test_evaluation_over_a_hub_equals_that_of_folders(hub, prompts, expected, tmp_path):
    done = pl.lm.evaluate(opened(), tmp_path / "s", prompts, WATCH, progress=False)
    same(done, expected)
    kept = done.step(16)
    assert kept["revision"] == "step16" and kept["files"][WEIGHTS].startswith("sha256:")


FAULTS = [
    dict(kind="cut", after=3000),
    dict(kind="reset", after=3000),
    dict(kind="corrupt", after=5000),
    dict(kind="short"),
    dict(kind="status", status=429, headers={"Retry-After": "0"}),
    dict(kind="status", status=503),
    dict(kind="slow", rate=2e5),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f['kind']}{f.get('status', '')}")
def test_transient_fault_changes_nothing(fault, hub, prompts, expected, tmp_path):
    hub.fail(match=WEIGHTS, revision="step16", **fault)
    same(pl.lm.evaluate(opened(), tmp_path / "s", prompts, WATCH, progress=False), expected)


@pytest.mark.parametrize("fault", [dict(kind="corrupt", after=5000), dict(kind="status", status=503)], ids=str)
def test_persistent_fault_is_one_line_and_nothing_wrong_is_measured(fault, hub, prompts, expected, tmp_path):
    fault = hub.fail(match=WEIGHTS, revision="step16", times=None, **fault)
    suite = opened()
    suite.source.client.patience = 0.05
    with pytest.raises((ValueError, ConnectionError)) as error:
        pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, progress=False)
    assert "\n" not in str(error.value) and "step16" in str(error.value)
    same(pl.lm.EvaluatedCheckpoints(tmp_path / "s"), expected, [0, 1])
    fault.times = 0
    same(pl.lm.evaluate(opened(), tmp_path / "s", prompts, WATCH, progress=False), expected)


def test_a_revision_that_is_gone_is_one_line(hub, prompts, tmp_path):
    suite = opened()
    repo = hub.repos["org/small"]
    del repo.commits[repo.branches["step16"]]
    with pytest.raises(ValueError, match="step16"):
        pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, progress=False)
    with pytest.raises(ValueError, match="no checkpoint of step 17; nearest: 16"):
        suite.model(17)
    with pytest.raises(ValueError, match="nobody"):
        opened("org/nobody").steps  # noqa: B018


def watched(folder, stop, seen):
    while not stop.is_set():
        total = 0
        for root, _, files in os.walk(folder):
            for name in files:
                with suppress(OSError):  # it may be gone by now
                    total += os.path.getsize(os.path.join(root, name))
        seen.append(total)
        time.sleep(0.001)


@pytest.mark.parametrize("most", [None, 1.3])
def test_disk_use_stays_below_max_bytes_during_a_walk(most, hub, prompts, expected, tmp_path):
    size = opened().size(0)
    cap = None if most is None else int(most * size)
    if cap is not None:
        cap = max(cap, size + 20_000)  # the tokenizer comes first, and alone
    suite = opened(max_bytes=cap, cache=tmp_path / "cache")
    hub.fail("slow", WEIGHTS, rate=2e5, times=None)
    stop, seen = threading.Event(), [0]
    thread = threading.Thread(target=watched, args=(tmp_path / "cache", stop, seen))
    thread.start()
    try:
        done = pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, progress=False)
    finally:
        stop.set()
        thread.join()
    same(done, expected)
    assert size < max(seen) <= (cap or 2 * size + 2 * CLIENT_OVERHEAD)
    if cap is not None:
        assert suite.source.used <= cap


def test_checkpoint_above_max_bytes_is_refused_before_a_download(hub):
    with pytest.raises(ValueError, match="raise max_bytes"):
        opened(max_bytes=1000).model(16)
    assert not hub.requests(WEIGHTS)


def test_next_is_fetched_while_one_is_measured(hub):
    walk = opened().walk([0, 1, 16])
    next(walk)
    end = time.monotonic() + 20
    while not [r for r in hub.requests(WEIGHTS) if r.status == 200 and r.sent] or len(hub.requests(WEIGHTS)) < 4:
        assert time.monotonic() < end, "step 1 was not fetched while step 0 was in use"
        time.sleep(0.01)
    walk.close()


def test_next_is_fetched_while_one_is_opened_if_both_fit_on_disk(hub, monkeypatch):
    seen, own = [], loading.open_plain_model

    def slowly(folder, what, *arguments, **options):
        if what.endswith("step 0"):
            end = time.monotonic() + 3
            while len(paths := {r.path for r in hub.requests(WEIGHTS)}) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(len(paths))
        return own(folder, what, *arguments, **options)

    monkeypatch.setattr("plateaulens.lm.suite.open_plain_model", slowly)
    size = opened().size(0)
    for cap in (None, 2 * size + 50_000, int(1.5 * size)):
        hub.log.clear()
        shutil.rmtree(opened().source.folder, ignore_errors=True)
        assert [step for step, _ in opened(max_bytes=cap).walk([0, 1])] == [0, 1]
    assert seen == [2, 2, 1]


def test_files_evicted_by_another_process_are_fetched_again(hub, suite_folder, monkeypatch):
    suite, own, evicted = opened(), loading.open_plain_model, []

    def stolen(folder, what, *arguments, **options):
        if not evicted:
            evicted.append(shutil.rmtree(folder))
        return own(folder, what, *arguments, **options)

    monkeypatch.setattr("plateaulens.lm.suite.open_plain_model", stolen)
    ((step, model),) = suite.walk([16])
    assert step == 16 and len(evicted) == 1 and [r.status for r in hub.requests(WEIGHTS) if r.sent] == [200, 200]
    assert torch.equal(model.W_E, pl.lm.from_folder(suite_folder).model(16).W_E)


def test_closing_a_walk_stops_its_download(hub):
    suite = opened()
    hub.fail("slow", WEIGHTS, revision="step1", rate=2000, times=None)  # half a minute
    walk = suite.walk([0, 1])
    next(walk)
    start = time.monotonic()
    walk.close()
    assert time.monotonic() - start < 10 and threading.active_count() < 20


def test_branch_with_weights_of_another_is_warned_of_with_evidence(hub, prompts, tmp_path):
    found = pl.lm.audit(opened("org/wrong"), progress=False)
    assert found.duplicates[0].steps == (1, 128) and found.duplicates[0].main and not hub.requests("/resolve/")
    with pytest.warns(UserWarning, match=r"step 1: has the weights of main.*sha256"):
        pl.lm.evaluate(opened("org/wrong"), tmp_path / "s", prompts, WATCH, [1], progress=False)
    weight_audit._warned.clear()
    with pytest.warns(UserWarning, match=r"step 1: has the weights of main.*sha256"):
        list(opened("org/wrong").walk([1]))


CHILD = """
import sys, torch
torch.set_num_threads(1)
import plateaulens as pl
suite = pl.lm.pythia("14m")
batch = pl.Batch.prompts(suite.tokenizer(["Why?", "What floats on water?"])["input_ids"], 4)
pl.lm.evaluate(suite, sys.argv[1], batch, ["collapse", "repetition"], progress=False)
"""


def test_kill_during_a_download_loses_only_that_step(hub, prompts, expected, tmp_path):
    slow = hub.fail("slow", WEIGHTS, revision="step16", rate=2000, times=None)  # half a minute

    def work(path):
        torch.set_num_threads(1)
        pl.lm.evaluate(opened(), path, prompts, WATCH, progress=False)

    assert not run_in_child(tmp_path / "s", 2.0, signal.SIGKILL, work)
    kept = sorted((tmp_path / "s" / "steps").glob("*.json"))
    assert {int(p.stem) for p in kept} <= {0, 1} and all(json.loads(p.read_text())["values"] for p in kept)
    slow.times = 0
    same(pl.lm.evaluate(opened(), tmp_path / "s", prompts, WATCH, progress=False), expected)


@pytest.mark.slow
def test_killed_process_with_only_environment_variables_continues(hub, expected, tmp_path):
    """A process that gets the Hub's address from its environment, killed while each of two steps is downloaded."""
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": hub.url}
    env["PYTHONWARNINGS"] = "ignore"
    slow = [hub.fail("slow", WEIGHTS, revision=f"step{s}", rate=4000, times=None) for s in (16, 128)]
    kept = tmp_path / "s" / "steps"
    for i, step in enumerate((16, 128)):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "s")], env=env)
        before = {0, 1} if step == 16 else {0, 1, 16}
        end = time.monotonic() + 120
        while {int(p.stem) for p in kept.glob("0*.json")} != before or not [
            r for r in hub.requests(WEIGHTS) if r.sent and r.status in (200, 206) and _of(hub, r, step)
        ]:
            assert time.monotonic() < end and process.poll() is None, "it did not come so far"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert {int(p.stem) for p in kept.glob("*.json")} == before
        assert all(json.loads(p.read_text())["values"] for p in kept.glob("*.json"))
        slow[i].times = 0
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "s")], env=env)
    assert done.returncode == 0
    same(pl.lm.EvaluatedCheckpoints(tmp_path / "s"), expected)


def _of(hub, request, step):
    return hub.repos["EleutherAI/pythia-14m"].branches[f"step{step}"] in request.path


def test_patching_across_steps_of_a_hub_fetches_what_it_needs(hub):
    batch = pl.Batch.prompts(torch.arange(1, 25).view(4, 6), 3)
    grid = pl.patch_across_steps(opened(), batch, metrics=["collapse"], sources=[128], targets=[0, 1], progress=False)
    assert grid.collapse.shape == (1, 2)


def test_offline_it_says_what_to_do(monkeypatch, suite_folder, tmp_path):
    monkeypatch.setenv("PLATEAULENS_CACHE", str(tmp_path))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE") as error:
        pl.lm.pythia("14m").steps  # noqa: B018
    assert "\n" not in str(error.value) and "HF_HUB_OFFLINE" in str(error.value)


@pytest.mark.parametrize("arguments, words", [(["list", "pythia-14m", "--sizes"], ["step16", "bytes"])])
def test_the_shell_reaches_the_hub(arguments, words, hub):
    from plateaulens.cli import main

    if "checkpoints" not in main.commands:
        pytest.fail("no checkpoints command")
    done = CliRunner().invoke(main, ["checkpoints", *arguments])
    assert done.exit_code == 0 and all(word in done.output for word in words), done.output


def test_removed_cache_is_fetched_again(hub, tmp_path):
    suite = opened()
    suite.model(16)
    shutil.rmtree(tmp_path / "cache")
    suite.model(16)
