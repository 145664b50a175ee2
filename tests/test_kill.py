"""A recording that is killed at any moment, again and again, ends in the bytes of one that was not."""

import json
import os
import random
import signal
import sys
import time
from functools import cache

import pytest
import torch

import plateaulens as pl

TASK = pl.MovingWindowSum(n=4, k=2, p=5)


def work(path):
    """What the child does: start the recording, or go on with it."""
    torch.set_num_threads(1)
    try:
        pl.resume(path, progress=False)
    except (FileNotFoundError, ValueError) as error:
        if "not a run" not in str(error) and "no recording" not in str(error):
            raise
        model = pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=16))
        training = pl.train(model, TASK, pl.TrainConfig(steps=60, batch_size=16, lr=1e-3))
        held = TASK.sample(16, seed=1)
        pl.record(training, path, held, every=3, save_every=7, overwrite=True, progress=False)


def child(path, wait, sig):
    """Run `work` in a child and send `sig` after `wait` seconds; True when it finished by itself."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work(path)
            code = 0
        except KeyboardInterrupt:
            code = 3
        except BaseException:  # noqa: B036 (the child must never return into pytest)
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if wait is not None:
        time.sleep(wait)
        os.kill(pid, sig)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) in (0, 3)
    return os.WEXITSTATUS(status) == 0


def contents(folder):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    config = json.loads(files.pop("run.json"))
    config.pop("created")
    return files, config


@cache
def straight(folder):
    """The uninterrupted run, and how long it takes."""
    start = time.monotonic()
    assert child(folder / "whole", None, None)
    return contents(folder / "whole"), time.monotonic() - start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Imports first, in the parent: children that each spend seconds on them would be killed before any work.
    work(tmp_path_factory.mktemp("warm") / "run")
    yield straight(tmp_path_factory.mktemp("kill"))
    torch.set_num_threads(threads)


def killed_until_finished(folder, whole, sig, seed):
    expected, seconds = whole
    moments, kills = random.Random(seed), 0
    while not child(folder / "run", moments.uniform(0.02, 0.6) * seconds, sig):
        kills += 1
        assert kills < 200, "no progress between kills"
    files, config = contents(folder / "run")
    assert config == expected[1]
    assert sorted(files) == sorted(expected[0])
    assert [name for name in files if files[name] != expected[0][name]] == []


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("seed", range(3))
def test_killed_and_resumed_until_finished(tmp_path, whole, sig, seed):
    killed_until_finished(tmp_path, whole, sig, seed)


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("seed", range(3, 18))
def test_killed_and_resumed_many_more_times(tmp_path, whole, sig, seed):
    killed_until_finished(tmp_path, whole, sig, seed)


def test_the_uninterrupted_run_holds_what_it_should(whole):
    (files, _), _ = whole
    assert {f"checkpoints/{t:06d}.safetensors" for t in [*range(0, 60, 7), 60]} < set(files)
    assert files["metrics.jsonl"].count(b"\n") == 21
