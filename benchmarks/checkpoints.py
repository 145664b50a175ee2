"""Time to measure one checkpoint and to walk over many, compared with a plain loop over Hugging Face's models.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/checkpoints.py --rounds 3

The plain loop measures a checkpoint one prompt at a time through `generate`, without a cache, and downloads and opens
every checkpoint by itself. Both ways must give the same numbers before they are timed. The Hub is on loopback: it has
the ten steps of the bundled suite several times, each file with a different header, so that each has to be fetched.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench import compare
from torch import Tensor
from transformers.utils import logging

import plateaulens as pl
from interventions import memory
from plateaulens.lm.prompts import read_prompts
from plateaulens.metrics.named import NGRAM_METRICS, STATE_METRICS
from plateaulens.protocols import requires
from plateaulens.tracing.traces import FINAL

BUNDLED = pl.lm.bundled("neox-0.2m")
REPO, WEIGHTS = "org/small", "model.safetensors"
SHORT = ["collapse", "repetition"]
N_NEW = 8  # generated tokens per prompt
PAIRS = torch.triu_indices(N_NEW, N_NEW, 1)
ALL = torch.ones(100, N_NEW, dtype=torch.bool)  # which answer positions exist


# One checkpoint.


@torch.no_grad()
def plain_loop(model: Any, batch: pl.Batch, metrics: Sequence[str]) -> dict[str, Tensor]:
    """Values and tokens of each prompt, one prompt at a time, by Hugging Face's `generate` without a cache."""
    options = dict(min_new_tokens=N_NEW, max_new_tokens=N_NEW, do_sample=False, use_cache=False, pad_token_id=0)
    options |= dict(output_hidden_states=True, output_logits=metrics != SHORT, return_dict_in_generate=True)
    generated, states, columns = [], [], defaultdict(list)
    for row, end in zip(batch.tokens, batch.answer_positions[:, 0].tolist()):
        ids = row[None, : end + 1]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        layers = [torch.stack([step[i][0, -1] for step in out.hidden_states]) for i in range(len(out.hidden_states[0]))]
        generated.append(out.sequences[0, end + 1 :])
        states.append(layers[-1])
        columns["collapse"].append(mean_cosine(layers[-1]))
        if metrics != SHORT:
            columns["prediction_entropy"].append(pl.metrics.functional.token_entropy(torch.cat(out.logits)).mean())
            for i, layer in enumerate(layers[1:-1]):  # the last is after the final norm
                columns[f"collapse@blocks.{i}.hook_resid_post"].append(mean_cosine(layer))
    values = {name: torch.stack(column) for name, column in columns.items()}
    tokens, final = torch.stack(generated), torch.stack(states)
    values |= {"tokens": tokens, "repetition": (tokens[:, 1:] == tokens[:, :-1]).float().mean(1)}
    if metrics != SHORT:
        values |= {name: NGRAM_METRICS[name[:-2]](tokens, ALL, 2) for name in ("rep@2", "distinct@2")}
        values |= {name: STATE_METRICS[name.partition("@")[0]](final) for name in metrics if name.endswith(FINAL)}
        values["entropy"] = pl.metrics.functional.sequence_entropy(tokens, ALL)
    return values


def mean_cosine(hidden: Tensor) -> Tensor:
    """Mean cosine of all pairs of rows."""
    i, j = PAIRS
    return F.cosine_similarity(hidden[i], hidden[j]).mean()


@requires("generated")
def tokens(t: pl.Trace) -> Tensor:
    """The generated tokens."""
    return t.generated


def one_checkpoint(name: str, folder: Path, step: int, batch: pl.Batch, rounds: int) -> None:
    """Measure a checkpoint both ways and compare the times."""
    from transformers import AutoModelForCausalLM

    model = pl.lm.from_folder(folder).plain_model(step)
    plain = AutoModelForCausalLM.from_pretrained(folder / f"step{step}", dtype=torch.float32).eval()
    for metrics, what in ((SHORT, "collapse and repetition"), (pl.lm.DEFAULT_METRICS, "lm.DEFAULT_METRICS")):
        values, expected = pl.measure(model, batch, [*metrics, tokens], reduce=None), plain_loop(plain, batch, metrics)
        assert torch.equal(values["tokens"].long(), expected.pop("tokens"))
        for metric, column in expected.items():
            tolerance = 1e-5 * max(1.0, float(column.abs().max()))
            torch.testing.assert_close(values[metric].float(), column.float(), rtol=0, atol=tolerance)
        a, b = partial(pl.measure, model, batch, metrics), partial(plain_loop, plain, batch, metrics)
        compare(f"{name}: {what}", a, b, rounds, "<= 0.10")


def like_pythia_14m(folder: Path) -> pl.Batch:
    """Save a random checkpoint of Pythia 14m's shape; returns random prompts, as long as the built-in ones."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    shape = dict(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512)
    torch.manual_seed(0)
    cfg = GPTNeoXConfig(**shape, vocab_size=50304, bos_token_id=0, eos_token_id=0)
    GPTNeoXForCausalLM(cfg).half().save_pretrained(folder / "step0")
    AutoTokenizer.from_pretrained(BUNDLED / "step0").save_pretrained(folder / "step0")
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in read_prompts()]
    return pl.Batch.prompts(
        [torch.randint(1, 50304, (n,)).tolist() for n in lengths], N_NEW, pl.lm.Decoding(forbidden=(0,))
    )


# Many checkpoints of a Hub: each function runs in a new process, whose environment has the address of the Hub.


def walked(cache: Path, steps: Sequence[int], prompts: pl.Batch) -> list[float]:
    """Collapse at each step by `walk`, starting with an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    suite = pl.lm.from_hub(REPO, cache=cache)
    return [float(pl.measure(model, prompts, SHORT)["collapse"]) for _, model in suite.walk(steps, plain=True)]


def one_by_one(cache: Path, steps: Sequence[int], prompts: pl.Batch) -> list[float]:
    """The same for checkpoints that are downloaded and opened one after the other by Hugging Face's client."""
    from transformers import AutoModelForCausalLM

    shutil.rmtree(cache, ignore_errors=True)
    values = []
    for revision in (f"step{step}" for step in steps):
        plain = AutoModelForCausalLM.from_pretrained(REPO, revision=revision, dtype=torch.float32)
        values.append(float(pl.measure(pl.lm.PlainModel(plain.eval()), prompts, SHORT)["collapse"]))
    return values


def compare_walks(name: str, folder: Path, steps: int, rounds: int) -> None:
    """Walk both ways and compare the times."""
    prompts = pl.lm.from_folder(BUNDLED).prompts(n=10)
    a, b = (partial(way, folder / way.__name__, range(steps), prompts) for way in (walked, one_by_one))
    torch.testing.assert_close(torch.tensor(a()), torch.tensor(b()), rtol=0, atol=1e-5)
    compare(name, a, b, rounds, "< 1")


def long_walk(cache: Path, max_bytes: int) -> list[int]:
    """MiB of memory after each checkpoint of the Hub, opened as bridges."""
    suite, prompts, taken = (
        pl.lm.from_hub(REPO, cache=cache, max_bytes=max_bytes),
        pl.lm.from_folder(BUNDLED).prompts(n=10),
        [],
    )
    for _, model in suite.walk():
        pl.measure(model, prompts, SHORT)
        taken.append(memory("VmRSS"))
    return taken


def make_steps(folder: Path, n: int) -> dict[str, Path]:
    """`n` revisions: the bundled steps in turn, each file with a different header."""
    from safetensors.torch import load_file, save_file

    steps, made = pl.lm.from_folder(BUNDLED).steps, {f"step{i}": folder / f"step{i}" for i in range(n)}
    for i, to in enumerate(made.values()):
        shutil.copytree(BUNDLED / f"step{steps[i % len(steps)]}", to)
        save_file(load_file(to / WEIGHTS), to / WEIGHTS, {"format": "pt", "revision": f"{i:04}"})
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (default 3)")
    parser.add_argument("--steps", type=int, default=50, help="checkpoints of the long walk (20 or more; default 50)")
    args = parser.parse_args()
    logging.disable_progress_bar()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'':52} {'ours ms':>9} {'other ms':>9} {'ratio':>7}  {'range':13} {'of least':>9}  aim")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("100 prompts, 8 new tokens each, vs the plain loop")
        one_checkpoint("  neox-0.2m", BUNDLED, 128, pl.lm.from_folder(BUNDLED).prompts(), args.rounds)
        one_checkpoint("  14m", folder / "14m", 0, like_pythia_14m(folder / "14m"), args.rounds)

        sys.path.append(str(Path(__file__).parents[1] / "tests"))
        from loopback_hub import Hub

        spawned = partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn"))
        with Hub({REPO: make_steps(folder / "steps", args.steps)}) as hub:
            os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(folder / "one_by_one")}
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
            print("20 checkpoints, 10 prompts each, vs one by one", flush=True)
            with spawned() as pool:
                pool.submit(compare_walks, "  from loopback", folder, 20, args.rounds).result()
            slow = hub.fail("slow", WEIGHTS, times=None, rate=2e6)
            with spawned() as pool:
                pool.submit(
                    compare_walks, "  from a Hub that takes 0.2 s a checkpoint", folder, 20, args.rounds
                ).result()
            slow.times = 0

            one = pl.lm.from_folder(folder / "steps").size(0)
            before, cache, most = hub.sent(WEIGHTS), pl.lm.from_hub(REPO, cache=folder / "long").source, 0
            with spawned() as pool:
                walk = pool.submit(long_walk, folder / "long", 2 * one)
                while not walk.done():
                    most = max(most, cache.used)
                    time.sleep(0.002)
            taken, each = walk.result(), (folder / "steps" / "step0" / WEIGHTS).stat().st_size
            fetched = (hub.sent(WEIGHTS) - before) / each
            print(f"\n{len(taken)} checkpoints of {one:,} bytes walked, weights fetched {fetched:g} times")
            print(f"  disk    {most:,} bytes at most, cap {2 * one:,}")
            print(f"  memory  {taken[9]} MiB after the 10th, {taken[-1]} after the last, {max(taken)} at most")


if __name__ == "__main__":
    main()
