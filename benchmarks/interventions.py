"""What interventions and patching across steps cost, as ratios measured interleaved in one process.

    python benchmarks/interventions.py --rounds 5 --steps 20

The setting is the paper's moving-window sum (n=16, k=2, p=17, d_model 256), untrained: a run folder made on
the fly, whose checkpoints are random initializations. The grids put the attention of every step into
the model of every step, on 64 prompts; the loop does the same pair by pair, with models and maps at hand.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from bench import TASK, compare, new_model, seconds, train_step

import plateaulens as pl


def make_run(path: Path, steps: int) -> pl.Run:
    """A run folder with `steps` random checkpoints."""
    cfg = pl.ModelConfig.for_task(TASK)
    run = pl.Run.create(
        path, task=TASK, model=pl.Transformer(cfg), train=pl.TrainConfig(), eval_batch=TASK.sample(64, seed=1)
    )
    for step in range(steps):
        run.save(10 * step, pl.Transformer(pl.ModelConfig.for_task(TASK, seed=step)))
    return run


def scaled(stack: ExitStack) -> Callable[[], object]:
    """One step of `pl.train` while attention on the optimal map is scaled, until `stack` is closed."""
    model = new_model()
    training = pl.train(model, TASK, pl.TrainConfig(steps=10**6))
    next(training)
    stack.enter_context(pl.intervene(model, pl.ScaleAttention(TASK, factor=10.0)))
    return lambda: next(training)


def grid(run: pl.Run, metrics: str) -> torch.Tensor:
    """Every source in every target, at once."""
    return torch.from_numpy(
        pl.patch_across_steps(run, run.eval_batch(), metrics=[metrics], progress=False)[metrics].values
    )


def loop(run: pl.Run, metrics: str) -> torch.Tensor:
    """The same, a pair at a time."""
    batch = run.eval_batch()
    maps = [pl.trace(run.model(s), batch, ["blocks.0.attn.hook_pattern"]).pattern() for s in run.steps]
    columns = []
    for t in run.steps:
        model = run.model(t)
        column = []
        for pattern in maps:
            with pl.intervene(model, pl.FixAttention(pattern)):
                column.append(pl.measure(model, batch, [metrics])[metrics])
        columns.append(torch.stack(column))
    return torch.stack(columns, 1)


def memory(name: str) -> int:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:"))


def peak(path: Path, way: str, metrics: str) -> int:
    """MiB that a way of patching takes at its peak, beyond the process before it."""
    run = pl.Run(path)
    pl.measure(run.model(0), run.eval_batch(), [metrics])
    before = memory("VmRSS")
    {"grid": grid, "loop": loop}[way](run, metrics)
    return max(memory("VmHWM") - before, 0)


def floor(steps: int) -> float:
    """Seconds of the matrix products that no way around exists for: output, MLP and read-out of the answer rows."""
    rows, d = 64 * 16, 256
    flops = steps**2 * 2 * rows * (9 * d * d + 18 * d + 32 * d)
    a, b = torch.randn(4 * rows, d), torch.randn(d, 4 * d)
    return flops * min(seconds(lambda: a @ b) for _ in range(20)) / (2 * a.numel() * 4 * d)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the training comparison (default 15)")
    parser.add_argument("--steps", type=int, default=20, help="steps on each side of the large grid (default 20)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'':52} {'ours ms':>9} {'other ms':>9} {'ratio':>7}  {'range':13} aim")
    with ExitStack() as stack:
        compare("training step, attention scaled, vs plain", scaled(stack), train_step(), args.rounds, "<= 1.05")
    with tempfile.TemporaryDirectory() as folder:
        small, large = make_run(Path(folder) / "small", 10), make_run(Path(folder) / "large", args.steps)
        for metrics, aim in (("tf_accuracy", "<= 0.65"), ("accuracy", "<= 0.75")):
            assert torch.allclose(grid(small, metrics), loop(small, metrics), atol=2e-3)  # but for ties within rounding
            a, b = partial(grid, small, metrics), partial(loop, small, metrics)
            compare(f"10 x 10 grid of {metrics} vs loop of patches", a, b, max(args.rounds // 3, 3), aim)
        n = f"{args.steps} x {args.steps}"
        print(f"\n{n} grid, 64 prompts (floor of its matrix products {floor(args.steps):.1f} s)")
        for metrics, aim in (("tf_accuracy", 10), ("accuracy", 40)):
            taken = seconds(partial(grid, large, metrics))
            print(f"  {metrics:12} {taken:6.1f} s   aim at 20 x 20 on 2 cores: about {aim} s", flush=True)
        if Path("/proc/self/status").exists():
            print("\nmemory at the peak of a 10 x 10 grid, beyond the process before it")
            for metrics in ("tf_accuracy", "accuracy"):
                with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # fresh for each way
                    mib = {way: pool.apply(peak, (small.path, way, metrics)) for way in ("grid", "loop")}
                print(f"  {metrics:12} grid {mib['grid']:4} MiB, loop {mib['loop']:4} MiB", flush=True)


if __name__ == "__main__":
    main()
