"""Ctrl-C at any moment: the training goes on exactly, no hook stays behind, and the run is whole.

Every line of the code that must not be cut, and random moments of a child process that is sent real SIGINTs.
"""

import contextlib
import json
import linecache
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import transformer_lens

import plateaulens as pl
from plateaulens._io import read_tensors
from plateaulens._signals import defer_sigint, uninterruptible
from plateaulens.hooks import active_interventions

TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
CFG = pl.TrainConfig(steps=6, batch_size=8, lr=1e-3)
EVAL_BATCH = TASK.sample(6, seed=1)
SRC, TL = Path(pl.__file__).parent, Path(transformer_lens.__file__).parent


def sources(*names):
    return [str(SRC / name) for name in names]


CONTEXTS = [contextlib.__file__, *sources("_signals.py", "hooks.py")]
HOOKS = [str(TL / name) for name in ("hook_points.py", "HookedRootModule.py")]
HOOKS += [str(TL / "model_bridge" / name) for name in ("bridge.py", "bridge_core.py")]
TORCH = Path(torch.__file__).parent
GRADIENTS = [str(TORCH / name) for name in ("autograd/grad_mode.py", "utils/_contextlib.py")]


def build(**fields):
    return pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=16, **fields))


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def marks(model):
    """Everything on a model, and around it, that a block must leave as it was."""
    modules = dict(model.named_modules())
    return {
        "hooks": {
            n: [len(h) for h in (p.fwd_hooks, p.bwd_hooks, p._forward_hooks)] for n, p in model.hook_dict.items()
        },
        "pre-hooks": {n: len(m._forward_pre_hooks) for n, m in modules.items() if m._forward_pre_hooks},
        "interventions": active_interventions(model),
        "learns": [p.requires_grad for p in model.parameters()],
        "gradients": torch.is_grad_enabled(),
    }


def contents(folder):
    """Every file of a run by its bytes; times, and commits made while the tests run, left out."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    config = json.loads(files.pop("run.json"))
    for name in ("created", "git"):
        config.pop(name)
    return files, config


def refuse_damage(path):
    """A run opens, its metrics parse and go up, and every checkpoint and state has the bytes it was written with."""
    run = pl.Run(path)
    assert run.metrics.index.is_monotonic_increasing and run.metrics.index.is_unique
    assert run.last == (run.metrics.index[-1] if len(run.metrics) else -1)
    run.eval_batch()
    for file in [*path.glob("checkpoints/*.safetensors"), *path.glob("state/*.safetensors")]:
        read_tensors(file)  # raises unless its hash is right


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as in a notebook, whoever runs the tests, and one thread."""
    before, threads = signal.signal(signal.SIGINT, signal.default_int_handler), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGINT, before)
    torch.set_num_threads(threads)


class Interrupted:
    """Run `work`, with a Ctrl-C before line `at` of those that are run in `files`.

    Attributes:
        lines: how many there were.
        where: the line it came before, or None when `work` had ended by then.
        raised: whether it reached the caller.
    """

    def __init__(self, work, files, at=None):
        self.lines, self.where, self.raised, self._at, self._files = 0, None, False, at, set(files)
        sys.settrace(self._trace)
        try:
            work()
        except KeyboardInterrupt:
            self.raised = True
        finally:
            sys.settrace(None)

    def _trace(self, frame, event, arg):
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "call" or event == "line" and not at_a_with(frame):
            self.lines += 1
            if self.lines == self._at:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({event} of {frame.f_code.co_name})"
                signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)  # what Python does between two instructions
        return self._trace


def at_a_with(frame):
    """A `with` is traced once more when its block ends, where Python itself takes no interrupt."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def at_every_line(work, files, check, sample=None):
    """Interrupt `work` before every line of `files` (or before `sample` random ones); returns how many there are."""
    work()
    lines = Interrupted(work, files).lines
    check(None)
    for at in range(1, lines + 1) if sample is None else random.Random(0).sample(range(1, lines + 1), sample):
        done = Interrupted(work, files, at)
        assert done.where is None or done.raised, f"the interrupt before {done.where} was lost"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, done.where
        check(done.where)
    return lines


@contextlib.contextmanager
def a_block():
    yield


def test_interrupt_never_leaves_a_context_half_entered():
    inside = []

    @contextlib.contextmanager
    def twice():
        inside.append(1)
        inside.append(2)
        try:
            yield "value"
        finally:
            inside.pop()
            inside.pop()

    def work():
        with uninterruptible(twice()) as value:
            assert value == "value" and inside == [1, 2]

    def check(where):
        assert inside == [], where

    assert at_every_line(work, [__file__, *CONTEXTS], check) > 30


def test_interrupt_while_entering_or_leaving_is_raised_afterwards():
    done = []

    @contextlib.contextmanager
    def interrupted_twice():
        signal.raise_signal(signal.SIGINT)
        done.append("in")
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)
            done.append("out")

    with pytest.raises(KeyboardInterrupt):
        with uninterruptible(interrupted_twice()):
            done.append("never")
    assert done == ["in", "out"]


def test_interrupt_inside_the_block_and_errors_are_raised():
    with pytest.raises(KeyboardInterrupt), uninterruptible(a_block()):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), uninterruptible(a_block()):
        1 / 0  # noqa: B018
    with uninterruptible(contextlib.suppress(ZeroDivisionError)):
        1 / 0  # noqa: B018
    with uninterruptible(a_block()), uninterruptible(a_block()), defer_sigint(), uninterruptible(a_block()):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_sigint_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterruptible(a_block()), defer_sigint():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("last", [False, True])
def test_recording_interrupted_in_an_update_is_resumed_exactly(tmp_path, last):
    expected = pl.record(
        pl.train(build(), TASK, CFG), tmp_path / "whole", EVAL_BATCH, every=2, save_every=4, progress=False
    )
    training = pl.train(build(), TASK, CFG)
    update, at = training._update, CFG.steps if last else 3

    def interrupted():
        if training.t + 1 == at:
            signal.raise_signal(signal.SIGINT)
        return update()

    training._update = interrupted
    with pytest.raises(KeyboardInterrupt):
        pl.record(training, tmp_path / "run", EVAL_BATCH, every=2, save_every=4, progress=False)
    assert training.t == at
    assert contents(pl.resume(tmp_path / "run", progress=False).path) == contents(expected.path)


# Every line.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "TransformerLens"])
def test_interrupt_at_any_line_of_intervene_leaves_no_hook(kind):
    model = build() if kind == "transformer" else pl.to_tl(build())
    model(EVAL_BATCH.inputs)  # TransformerLens puts hooks of its own on when it first runs
    before = marks(model)

    def work():
        with pl.intervene(model, pl.ScaleAttention(TASK, factor=2.0), pl.Freeze("qk")):
            model(EVAL_BATCH.inputs)

    def check(where):
        assert marks(model) == before, where

    files = [*CONTEXTS, *HOOKS, *sources("interventions/base.py")]
    assert at_every_line(work, files, check, sample=None if kind == "transformer" else 300) > 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "TransformerLens"])
def test_interrupt_at_any_line_of_measure_leaves_no_hook(kind):
    model = build() if kind == "transformer" else pl.to_tl(build())
    metrics = ["loss", "accuracy", "collapse"]
    straight = pl.measure(model, EVAL_BATCH, metrics)
    before = marks(model)

    def check(where):
        assert marks(model) == before, where

    files = [
        *CONTEXTS,
        *HOOKS,
        *GRADIENTS,
        *sources("tracing/traces.py", "tracing/decoding.py", "metrics/measuring.py"),
    ]
    sample = None if kind == "transformer" else 300
    assert at_every_line(lambda: pl.measure(model, EVAL_BATCH, metrics), files, check, sample) > 300
    assert states_equal(pl.measure(model, EVAL_BATCH, metrics), straight)


@pytest.mark.slow
def test_interrupt_at_any_line_of_training_is_continued_exactly():
    cfg = pl.TrainConfig(steps=4, batch_size=2, lr=0.1, optimizer="sgd", momentum=0.9)
    straight = pl.train(build(), TASK, cfg)
    list(straight)
    expected = straight.state_dict()
    other = pl.train(build(seed=2), TASK, cfg)
    list(other.until(1))
    state = other.state_dict()
    list(other)
    begun = []

    def work():
        begun.clear()
        begun.append(pl.train(build(), TASK, cfg))
        list(begun[0].until(2))
        begun[0].load_state_dict(state)

    def check(where):
        if not begun:
            return
        # Another training's state was taken over, whole, or nothing of it.
        end = other.state_dict() if begun[0].t == 1 and states_equal(begun[0].state_dict(), state) else expected
        list(begun[0])
        assert states_equal(begun[0].state_dict(), end), where

    assert at_every_line(work, [*CONTEXTS, *sources("training/loop.py")], check) > 200


@pytest.mark.slow
def test_interrupt_at_any_line_of_writing_leaves_whole_files(tmp_path):
    model, state = build(), pl.train(build(), TASK, CFG).state_dict()
    template = pl.Run.create(tmp_path / "template", task=TASK, model=model, train=CFG, eval_batch=EVAL_BATCH)
    template.log(0, {"loss": 2.0})
    template.save(0, model)
    template.save_state(0, state)
    opened = []

    def work():
        opened.clear()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(template.path, tmp_path / "run")
        opened.append(pl.Run(tmp_path / "run"))
        opened[0].log(1, {"loss": 1.0, "curve": torch.ones(2), "nothing": float("nan")})
        opened[0].save(1, model)
        opened[0].save_state(1, state)

    def check(where):
        refuse_damage(tmp_path / "run")
        run = opened[0] if opened else pl.Run(tmp_path / "run")
        assert run.last == pl.Run(run.path).last, where  # what it remembers is what is on disk
        if run.last < 1:
            run.log(1, {"loss": 1.0})
        run.log(2, {"loss": 0.5})
        assert [*run.metrics.index] == [0, 1, 2], where
        assert states_equal(run.rewind(), state), where

    files = sources("_signals.py", "runs/run.py", "runs/metrics_log.py", "_io.py")
    assert at_every_line(work, files, check, sample=150) > 150


@pytest.mark.slow
def test_interrupt_at_any_line_of_reading_changes_no_file(tmp_path):
    run = pl.record(pl.train(build(), TASK, CFG), tmp_path / "run", EVAL_BATCH, every=2, save_every=4, progress=False)
    expected = contents(run.path)

    def work():
        run.eval_batch()
        run.weights(4)
        run.rewind()

    def check(where):
        assert contents(run.path) == expected, where

    files = sources("_signals.py", "runs/run.py", "runs/metrics_log.py", "_io.py")
    assert at_every_line(work, [*files, str(TORCH / "storage.py")], check, sample=150) > 150


@pytest.mark.slow
def test_interrupt_at_any_line_of_record_is_resumed_exactly(tmp_path):
    change, cfg = pl.ScaleAttention(TASK, factor=3.0), pl.TrainConfig(steps=3, batch_size=4, lr=1e-3)
    begun = []

    def work(path=tmp_path / "run"):
        shutil.rmtree(path, ignore_errors=True)
        begun[:] = [pl.train(build(), TASK, cfg)]
        with pl.intervene(begun[0].model, change):
            pl.record(begun[0], path, EVAL_BATCH, ["loss"], every=1, save_every=2, progress=False)

    work(tmp_path / "whole")
    expected, end = contents(tmp_path / "whole"), begun[0].state_dict()
    before = marks(begun[0].model)

    def check(where):
        training = begun[0]
        assert marks(training.model) == before, where
        if (tmp_path / "run" / "run.json").exists():
            refuse_damage(tmp_path / "run")
            pl.resume(tmp_path / "run", progress=False)
            assert contents(tmp_path / "run") == expected, where
        with pl.intervene(training.model, change) if training.t < cfg.steps else contextlib.nullcontext():
            list(training)
        assert states_equal(training.state_dict(), end), where

    rooms = sources(
        "interventions/base.py", "runs/recording.py", "runs/run.py", "runs/metrics_log.py", "_io.py", "training/loop.py"
    )
    assert at_every_line(work, [*CONTEXTS, *rooms], check, sample=120) > 120


# Random moments.


def notebook(folder):
    """What the child does: a cell at a time, each until Ctrl-C stops it, and after each the checks."""
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    changes = [pl.ScaleAttention(TASK, factor=2.0), pl.Freeze("mlp")]
    metrics = ["loss", "accuracy", "attention_progress", "collapse"]

    long = pl.TrainConfig(steps=100_000, batch_size=8, lr=1e-3, optimizer="adamw", schedule="cosine", warmup=20)
    training, twin = pl.train(build(), TASK, long), pl.train(build(), TASK, long)
    before = marks(training.model)

    def go_on_training():
        while True:
            begin = training.t
            with pl.intervene(training.model, *changes):
                for step in training:
                    if step.t == begin + 3:
                        break

    def check_training():
        with pl.intervene(twin.model, *changes) if twin.t < training.t else contextlib.nullcontext():
            list(twin.until(training.t))
        assert states_equal(training.state_dict(), twin.state_dict())

    short = pl.TrainConfig(steps=12, batch_size=8, lr=1e-3)
    recorded = []

    def start_recordings(name="run"):
        while True:
            path = folder / f"{name}-{len(recorded)}"
            recorded.append((pl.train(build(), TASK, short), path))
            with pl.intervene(recorded[-1][0].model, *changes):
                pl.record(recorded[-1][0], path, EVAL_BATCH, metrics, every=2, save_every=5, progress=False)
            if name == "whole":
                return

    start_recordings("whole")
    expected, end = contents(recorded[0][1]), recorded[0][0].state_dict()

    def check_recording():
        mine, path = recorded[-1]
        assert marks(mine.model) == before
        if (path / "run.json").exists():
            refuse_damage(path)
            pl.resume(path, progress=False)
            assert contents(path) == expected
        with pl.intervene(mine.model, *changes) if mine.t < short.steps else contextlib.nullcontext():
            list(mine)
        assert states_equal(mine.state_dict(), end)

    model = build(seed=5)
    value = pl.trace(training.model, EVAL_BATCH).cache["blocks.0.hook_attn_out"]

    def look():
        with pl.intervene(model, pl.Patch("blocks.0.hook_attn_out", value, positions=[5, 6])):
            return [
                pl.measure(model, EVAL_BATCH, metrics),
                {"decoded": pl.trace(model, EVAL_BATCH, ["generated"]).generated},
                pl.trace(model, EVAL_BATCH).cache,
            ]

    seen = look()

    def keep_looking():
        while True:
            look()

    def check_looking():
        assert marks(model) == before
        assert all(states_equal(a, b) for a, b in zip(look(), seen, strict=True))

    cells = [(go_on_training, check_training), (start_recordings, check_recording), (keep_looking, check_looking)]
    for number in range(int(sys.stdin.readline())):
        cell, check = cells[number % 3]
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("running", flush=True)
            cell()
        except KeyboardInterrupt:
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the checks are not to be interrupted
        assert handler is signal.default_int_handler
        assert marks(training.model) == before
        check()
        print("checked", flush=True)
    print(training.t, flush=True)


@pytest.mark.slow
def test_fifty_random_interrupts_end_in_the_same_bytes(tmp_path):
    # A process of its own: without the type checks of the tests, whose wrappers would be interrupted, too.
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    moments, interrupts = random.Random(), 51  # new moments every time: what is asserted holds at any
    try:
        child.stdin.write(f"{interrupts}\n")
        child.stdin.flush()
        for _ in range(interrupts):
            assert child.stdout.readline() == "running\n"
            time.sleep(moments.uniform(0, 0.25))
            child.send_signal(signal.SIGINT)
            while not select.select([child.stdout], [], [], 30)[0]:
                child.send_signal(signal.SIGINT)  # Python drops one that comes while an object is deleted
            assert child.stdout.readline() == "checked\n"
        assert int(child.stdout.readline()) > 0
        assert child.wait() == 0
    finally:
        child.kill()
        child.communicate()


if __name__ == "__main__":
    notebook(Path(sys.argv[1]))
