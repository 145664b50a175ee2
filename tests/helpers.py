"""What several test files share: a task with ragged answers, a small model, interventions with their edits by hand."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

import plateaulens as pl
from plateaulens.tasks.algorithms.string_task import StringTask
from plateaulens.tasks.base import generator

WINDOW_SUM = pl.tasks.MovingWindowSum(n=4, k=2, p=5)  # 9 tokens, 8 targets, prompt 5
PATTERN, Z, RESID = "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre"


def run_in_child(path, wait, sig, work):
    """Run `work(path)` in a child process and send it `sig` after `wait` seconds; True if it finished by itself."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            tqdm.set_lock(threading.RLock())  # a killed child must not keep the lock that all share
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


@dataclass(frozen=True, kw_only=True)
class ReverseRepeated(StringTask):
    """Write the input in reverse, over and over, up to `n` letters in all: a long input has a short answer."""

    n: int = 6

    @property
    def symbols(self):
        return "abcd"

    @property
    def n_answer(self):
        return self.n - 1

    @property
    def n_ctx(self):
        return self.n + 2

    def sample(self, n, *, seed, device="cpu"):
        rng = generator(seed, device)
        length = torch.randint(1, self.n + 1, (n, 1), generator=rng)
        letters, positions = torch.randint(0, 4, (n, self.n), generator=rng), torch.arange(self.n)
        answers = letters.gather(1, (length - 1 - positions % length).clamp(min=0))
        return self.assemble(
            letters.masked_fill(positions >= length, -1),
            answers[:, :-1].masked_fill(positions[:-1] >= self.n - length, -1),
        )


def small_transformer(attention="linear", seed=0, task=WINDOW_SUM, **fields):
    """A `Transformer` of width 16 whose large initial weights make every edit visible."""
    sizes = dict(d_model=16, n_heads=2, n_layers=2, init_scale=10.0) | fields
    return pl.Transformer(pl.ModelConfig.for_task(task, attention=attention, seed=seed, **sizes))


def put(index, value):
    """An edit that sets a tensor at `index`, to `value` or to what `value` returns for the tensor."""

    def edit(tensor):
        tensor[index] = value(tensor) if callable(value) else value
        return tensor

    return edit


ALL, UNIFORM = slice(None), torch.ones(8, 8).tril() / torch.arange(1, 9)[:, None]
OMEGA = WINDOW_SUM.optimal_attention()[0][0]
SCALED = OMEGA.clone()
SCALED[4] = False  # the partial solution's row
VECTOR = torch.linspace(-1, 1, 16)
UNITS = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))[0].T
PLACES = torch.tensor([[1, 6], [7, -1], [4, 2]])  # positions of two directions in three examples, -1 for none


def projected(x):
    for example, places in enumerate(PLACES.tolist()):
        for u, place in zip(UNITS, places):
            if place >= 0:
                x[example, place] -= (x[example, place] @ u - 3.0) * u
    return x


def rescaled(pattern):
    scaled = torch.where(SCALED, pattern * 3, pattern)
    return scaled * (pattern.sum(-1, keepdim=True) / scaled.sum(-1, keepdim=True))


def optimal(pattern):
    return torch.where(OMEGA.any(-1)[:, None], OMEGA / OMEGA.sum(-1, keepdim=True).clamp(min=1), pattern)


# name: the intervention, the hook that it edits, the same edit by hand
INTERVENTION_CASES = {
    "scale": (pl.ScaleAttention(WINDOW_SUM, factor=3.0), PATTERN, lambda a: torch.where(SCALED, a * 3, a)),
    "scale, renormalized": (pl.ScaleAttention(WINDOW_SUM, factor=3.0, renormalize=True), PATTERN, rescaled),
    "optimal": (pl.OptimalAttention(WINDOW_SUM), PATTERN, optimal),
    "fix": (pl.FixAttention(UNIFORM, layer=1), PATTERN, lambda a: UNIFORM.expand_as(a)),
    "uniform head": (pl.AblateHeads([(1, 1)], "uniform"), PATTERN, put((ALL, 1), UNIFORM)),
    "mean head": (pl.AblateHeads([(1, 0)], "mean"), PATTERN, put((ALL, 0), lambda a: a[:, 0].mean(0))),
    "no head": (pl.AblateHeads([(1, 0)], "zero"), Z, put((ALL, ALL, 0), 0.0)),
    "zero": (pl.Ablate(Z, "zero", heads=[1], positions=[2, 5]), Z, put((ALL, [2, 5], 1), 0.0)),
    "mean": (pl.Ablate(RESID, "mean"), RESID, put((ALL,), lambda x: x.mean(0))),
    "mean at": (pl.Ablate(RESID, "mean", positions=[3]), RESID, put((ALL, 3), lambda x: x[:, 3].mean(0))),
    "patch": (pl.Patch(RESID, torch.ones(3, 8, 16), positions=[6]), RESID, put((ALL, 6), 1.0)),
    "patch for any": (pl.Patch(RESID, torch.ones(8, 16)), RESID, torch.ones_like),
    "patch a head": (pl.Patch(Z, torch.ones(3, 8, 2, 8), heads=[0]), Z, put((ALL, ALL, 0), 1.0)),
    "patch rows": (pl.Patch(PATTERN, UNIFORM, heads=[1], positions=[7]), PATTERN, put((ALL, 1, 7), UNIFORM[7])),
    "steer": (pl.Steer(RESID, VECTOR, factor=2.0, positions=[1]), RESID, put((ALL, 1), lambda x: x[:, 1] + 2 * VECTOR)),
    "steer a head": (
        pl.Steer(Z, VECTOR[:8], heads=[1]),
        Z,
        put((ALL, ALL, 1), lambda z: z[:, :, 1] + VECTOR[:8]),
    ),
    "project": (pl.interventions.Project(RESID, PLACES, UNITS[:, None], torch.full((2, 1), 3.0)), RESID, projected),
}
