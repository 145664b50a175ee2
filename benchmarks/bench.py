"""Training steps and metrics of this package compared with plain PyTorch, as ratios of wall time.

    make bench                  # or: python benchmarks/bench.py --rounds 5

Each row times both versions in turn, round after round. It prints the median of the ratios of the rounds with its
range, which is robust to a drifting machine, and the ratio of the smallest times, which is robust to a busy one. The
setting is the moving-window sum of arXiv 2506.13688 (n=16, k=2, p=17, d_model 256, batch 256); for "Transformer++" it
is addition of 16 bits (arXiv 2505.03997; d_model 64, 4 layers, batch 64).
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plateaulens as pl
from plateaulens.models.config import transformer_pp

ADDITION = pl.tasks.BinaryAddition(bits=16)
TASK = pl.tasks.MovingWindowSum(n=16, k=2, p=17)
FIVE_METRICS = [
    pl.metrics.loss,
    pl.metrics.accuracy,
    pl.metrics.repetition,
    pl.metrics.collapse,
    pl.metrics.attention_progress,
]


class PlainTransformer(nn.Module):
    """The model of the moving-window sum in plain PyTorch, without hooks and options."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(18, 256), nn.Embedding(33, 256)
        self.ln1, self.ln2, self.lnf = nn.LayerNorm(256), nn.LayerNorm(256), nn.LayerNorm(256)
        self.q, self.k, self.v, self.o = (nn.Linear(256, 256) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(256, 1024), nn.Linear(1024, 256), nn.Linear(256, 18, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        h = self.ln1(x)
        pattern = (self.q(h) @ self.k(h).mT / 16.0).tril()
        x = x + self.o(pattern @ self.v(h))
        x = x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))
        return self.head(self.lnf(x))


class PlainBlock(nn.Module):
    """Causal softmax attention with rotary positions, then SwiGLU, each after an RMSNorm."""

    def __init__(self, cfg: pl.ModelConfig) -> None:
        super().__init__()
        d, width, self.heads = cfg.d_model, cfg.d_mlp, cfg.n_heads
        self.ln1, self.ln2 = (nn.RMSNorm(d, cfg.eps) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.w_in, self.w_out, self.w_gate = (
            nn.Linear(*sides, bias=False) for sides in ((d, width), (width, d), (d, width))
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(y: Tensor) -> Tensor:
            a, b = y[..., ::2], y[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

        h = self.ln1(x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        h = self.ln2(x)
        return x + self.w_out(F.silu(self.w_gate(h)) * self.w_in(h))


class PlainTransformerPP(nn.Module):
    """`transformer_pp` in plain PyTorch, with its parameters in the same order."""

    def __init__(self, cfg: pl.ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.blocks = nn.ModuleList(PlainBlock(cfg) for _ in range(cfg.n_layers))
        self.ln_final = nn.RMSNorm(cfg.d_model, cfg.eps)
        self.head = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)
        speed = cfg.rotary_base ** -(torch.arange(0, cfg.d_head, 2) / cfg.d_head)
        angles = torch.outer(torch.arange(cfg.n_ctx), speed)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x, n = self.embed(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n])
        return self.head(self.ln_final(x))


def both_transformer_pp() -> tuple[nn.Module, nn.Module]:
    """`Transformer` and plain PyTorch with equal weights, after a check that their outputs are equal."""
    cfg = pl.ModelConfig.for_task(ADDITION, **transformer_pp(d_model=64, n_layers=4))
    model, plain, tokens = pl.Transformer(cfg), PlainTransformerPP(cfg), ADDITION.sample(64, seed=1).inputs
    for weight, plain_weight in zip(model.parameters(), plain.parameters(), strict=True):
        plain_weight.data.copy_(weight.data)
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=1e-5)
    return model, plain


def plain_step(model: nn.Module, task: pl.tasks.Task = TASK, size: int = 256) -> Callable[[], object]:
    """A training step on a fixed batch, written in plain PyTorch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = task.sample(size, seed=0)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(batch.inputs)
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        optimizer.step()

    return step


def train_step() -> Callable[[], object]:
    """A step of `pl.train`, sampling included."""
    training = pl.train(new_model(), TASK, pl.TrainConfig(steps=10**6))
    next(training)
    return lambda: next(training)


def new_model() -> pl.Transformer:
    """The model of the paper, with 807,936 parameters."""
    return pl.Transformer(pl.ModelConfig.for_task(TASK))


def ten_steps(*, measured: bool) -> Callable[[], object]:
    """Ten training steps, with or without measuring five metrics once."""
    step, eval_batch, model = train_step(), TASK.sample(256, seed=1), new_model()

    def run() -> None:
        for _ in range(10):
            step()
        if measured:
            pl.measure(model, eval_batch, FIVE_METRICS)

    return run


@torch.no_grad()
def measure_plainly(model: nn.Module, train: pl.Batch, test: pl.Batch) -> dict[str, float]:
    """The metrics without a key-value cache for decoding, and with a loop over pairs of positions."""

    def decode(batch: pl.Batch) -> Tensor:
        tokens = batch.tokens[:, : batch.prompt_len]
        for _ in range(16):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
        return tokens[:, batch.prompt_len :]

    logits, cache = model.run_with_cache(train.inputs, names_filter=["unembed.hook_in", "blocks.0.attn.hook_pattern"])
    hidden, pattern = cache["unembed.hook_in"][:, 16:], cache["blocks.0.attn.hook_pattern"][:, 0, 16:].abs()
    optimal = TASK.optimal_attention()[0][0, 16:]
    cosines = [
        F.cosine_similarity(hidden[:, i], hidden[:, j], dim=-1).mean() for i in range(1, 16) for j in range(1, i)
    ]
    generated, tested = decode(train), decode(test)
    return {
        "loss": F.cross_entropy(logits.flatten(0, 1), train.targets.flatten()).item(),
        "accuracy": (generated == train.answers).float().mean().item(),
        "repetition": (tested[:, 1:] == tested[:, :-1]).float().mean().item(),
        "collapse": torch.stack(cosines).mean().item(),
        "attention_progress": ((pattern * optimal).sum((1, 2)) / pattern.sum((1, 2))).mean().item(),
    }


def measure_all(model: pl.Transformer, train: pl.Batch, test: pl.Batch) -> dict[str, float]:
    """The same metrics by `pl.measure`, on 256 training prompts and 64 test prompts."""
    first = pl.measure(
        model,
        train,
        [
            pl.metrics.loss,
            pl.metrics.accuracy,
            pl.metrics.position_accuracy,
            pl.metrics.collapse,
            pl.metrics.attention_progress,
        ],
    )
    second = pl.measure(model, test, [pl.metrics.accuracy, pl.metrics.repetition, pl.metrics.entropy])
    values = {**second, **first}
    return {name: value.item() for name, value in values.items() if value.ndim == 0}


def compare(name: str, a: Callable[[], object], b: Callable[[], object], rounds: int, aim: str) -> None:
    """Time `a` and `b` in turn and print the median of the ratios a/b."""
    a(), b()
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        times.append((seconds(a), seconds(b)))
    ratios = [x / y for x, y in times]
    medians = [statistics.median(column) * 1e3 for column in zip(*times)]
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    smallest = min(x for x, _ in times) / min(y for _, y in times)
    ratio = statistics.median(ratios)
    print(f"{name:52} {medians[0]:9.1f} {medians[1]:9.1f} {ratio:7.3f}  {spread:13} {smallest:9.3f}  {aim}", flush=True)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def print_arithmetic_floor() -> None:
    """Print the time of a training step and of its matrix products alone, at the measured rate of multiplication."""
    rows, d = 256 * 32, 256
    weights = 12 * d * d + d * 18
    flops = 3 * (2 * rows * weights + 2 * 2 * 256 * 32 * 32 * d)  # forward, and twice that backward
    a, b = torch.randn(rows, d), torch.randn(d, 4 * d)
    rate = 2 * rows * d * 4 * d / min(seconds(lambda: a @ b) for _ in range(20))
    step = train_step()
    step()
    taken = statistics.median(seconds(step) for _ in range(10))
    print(
        f"\narithmetic floor of a step: {flops / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s = "
        f"{flops / rate * 1e3:.0f} ms; measured {taken * 1e3:.0f} ms ({taken * rate / flops:.2f} x the floor)"
    )


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="Number of rounds of each comparison (default 15).")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'':52} {'this ms':>9} {'plain ms':>9} {'ratio':>7}  {'range':13} {'smallest':>9}  aim")
    aim = "<= 1.05, never above 1.15"
    compare("model step vs plain PyTorch", plain_step(new_model()), plain_step(PlainTransformer()), rounds, aim)
    compare(
        "pl.train step (sampling too) vs plain PyTorch",
        train_step(),
        plain_step(PlainTransformer()),
        rounds,
        "<= 1.05, never above 1.15",
    )
    model, plain = both_transformer_pp()
    step, plain = plain_step(model, ADDITION, 64), plain_step(plain, ADDITION, 64)
    compare("Transformer++ step vs plain PyTorch", step, plain, 4 * rounds, "<= 1.1")
    compare(
        "five metrics every 10 steps vs none",
        ten_steps(measured=True),
        ten_steps(measured=False),
        max(rounds // 3, 3),
        "<= 1.25",
    )
    model, train, test = new_model(), TASK.sample(256, seed=1), TASK.sample(64, seed=2)
    a, b = measure_all(model, train, test), measure_plainly(model, train, test)
    assert all(abs(a[name] - b[name]) < 1e-4 for name in b), (a, b)  # a ratio of times needs equal results
    compare(
        "measure vs metrics without cache and vectorization",
        lambda: measure_all(model, train, test),
        lambda: measure_plainly(model, train, test),
        max(rounds // 3, 3),
        "<= 0.20",
    )
    print_arithmetic_floor()
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
