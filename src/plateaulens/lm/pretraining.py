"""`pretrain`: train a small GPT-NeoX in a minute, with checkpoints at Pythia's steps.

    pretrain("runs/small")          # step0, step1, step2, step4, ... in Hugging Face's layout

A call that was interrupted at any moment, even by SIGKILL, continues when it is repeated. The folder has:

    pretrain.json     arguments, hash of the text, versions
    metrics.jsonl     loss on the batch and on the held-out end of the text, a line per saved step
    step16/           config.json, model.safetensors, tokenizer.json, ...
    .state/           the newest exact state, until the last step is saved
"""

import json
import os
import platform
import shutil
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plateaulens._io import move_aside, read_tensors, versions, write_atomically, write_json, write_tensors
from plateaulens._signals import defer_sigint
from plateaulens.lm.loading import without_bars
from plateaulens.lm.text import Text, python_documentation
from plateaulens.tasks.base import check
from plateaulens.training.config import TrainConfig
from plateaulens.training.loop import Step, Training

DEFAULT = TrainConfig(steps=512, batch_size=32, lr=3e-3, optimizer="adamw", weight_decay=0.01)
END_OF_TEXT = "<|endoftext|>"
HELD_OUT_FRACTION = 20  # the last 1/20 of the text is held out
PACKAGES = ("plateaulens", "torch", "transformers", "tokenizers")


def pretrain(
    out: str | Path,
    text: str | Path | None = None,
    *,
    hidden: int = 64,
    layers: int = 3,
    heads: int = 4,
    vocab: int = 512,
    context: int = 64,
    train: TrainConfig | None = None,
    steps_to_save: Collection[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Train a GPT-NeoX (Pythia's architecture) and its tokenizer on a text; returns the folder of its checkpoints.

    Called again with the same arguments after an interruption, it continues and ends with the same bytes as without
    one; a finished pre-training is returned as it is.

    Args:
        out: Folder of the checkpoints.
        text: A text file in UTF-8; `python_documentation()` by default.
        hidden: Width of the residual stream; the MLP is four times as wide.
        layers: Number of layers.
        heads: Number of attention heads per layer.
        vocab: Vocabulary size of the byte-level BPE: 256 bytes, the end of a text, and merges.
        context: Number of tokens the model is given at once.
        train: Optimizer, learning rate and so on, by default `DEFAULT`; its seed is that of the data and of the initial
            weights.
        steps_to_save: Steps with a checkpoint, besides the first and the last; by default `schedule(train.steps)`.
        dtype: Type of the saved weights; training is in float32.
        device: Device of the training.
        progress: Whether to show a progress bar.
        overwrite: Whether to rename an existing folder (to `out.old-N`) instead of continuing or refusing.

    Raises:
        ValueError: For a size out of range, or a text that is not UTF-8 or too short; nothing is written.
        FileNotFoundError: When the text file does not exist.
        FileExistsError: When the folder has other files, or a pre-training with other arguments.
    """
    out, cfg = Path(out), train or DEFAULT
    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "vocab": vocab, "context": context}
    steps = sorted({0, cfg.steps, *(schedule(cfg.steps) if steps_to_save is None else steps_to_save)})
    _check(sizes, steps, cfg.steps, dtype)
    words, source = _read(text)
    arguments = {"text": sha256(words.encode()).hexdigest(), **sizes, **json.loads(json.dumps(asdict(cfg)))}
    arguments |= {"steps_to_save": steps, "dtype": str(dtype).removeprefix("torch."), "device": str(device)}
    begun = None if overwrite else _begun(out, arguments)
    if begun and (out / f"step{cfg.steps}").exists():
        shutil.rmtree(out / ".state", ignore_errors=True)  # a kill may have left it
        return out
    tokenizer, tokens = _tokenized(words, vocab)
    windows = len(tokens) // (context + 1)
    check(
        windows >= HELD_OUT_FRACTION,
        f"the text is too short: {windows} windows of {context + 1} tokens; {HELD_OUT_FRACTION} are needed",
    )
    learnt = {"tokens": len(tokens), "tokens_sha256": sha256(tokens.numpy().tobytes()).hexdigest()}
    end = len(tokens) - len(tokens) // HELD_OUT_FRACTION
    task, held = (Text(tokens=part, context=context) for part in (tokens[:end], tokens[end:]))
    training = Training(_new_model(sizes, cfg.seed).to(device), task, cfg)
    if begun:
        _refuse_other(out, learnt, begun)
    else:
        _make_way(out)
        about = {"source": source, "characters": len(words), **learnt, "arguments": arguments}
        write_json(out / "pretrain.json", {"format": 1, **about, "versions": versions(*PACKAGES)})
    _drive(out, training, held, tokenizer, steps, dtype, progress)
    return out


def schedule(last: int) -> list[int]:
    """Pythia's steps before `last` (0, 1, 2, 4, ..., 512, then every thousandth), and `last`."""
    return [step for step in (0, *(2**i for i in range(10)), *range(1000, last, 1000)) if step < last] + [last]


def _check(sizes: Mapping[str, int], steps: list[int], last: int, dtype: torch.dtype) -> None:
    for name, size in sizes.items():
        check(size >= 1, f"{name} must be at least 1, got {size}")
    unit = 8 * sizes["heads"]  # a quarter of each head's dimensions rotates, in pairs
    check(sizes["hidden"] % unit == 0, f"hidden must be a multiple of 8 x heads = {unit}, got {sizes['hidden']}")
    check(sizes["vocab"] >= 257, f"vocab must be at least 257 (256 bytes and {END_OF_TEXT}), got {sizes['vocab']}")
    check(steps[0] == 0 and steps[-1] == last, f"steps_to_save must lie in 0..steps={last}, got {steps}")
    check(dtype.is_floating_point, f"weights are saved as floating-point numbers, not as {dtype}")


def _read(text: str | Path | None) -> tuple[str, str]:
    """The text and its source."""
    if text is None:
        return python_documentation(), f"documentation and docstrings of CPython {platform.python_version()}"
    try:
        return Path(text).read_bytes().decode(), Path(text).name
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not a text in UTF-8 ({error})") from error


def _begun(out: Path, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of pretrain.json of a pre-training that can be continued; None where a new one can begin."""
    if not (out / "pretrain.json").is_file():
        if _in_the_way(out):
            raise FileExistsError(f"{out} holds something else; choose another folder, or overwrite (it is renamed)")
        return None
    begun: dict[str, Any] = json.loads((out / "pretrain.json").read_text())
    _refuse_other(out, arguments, begun.get("arguments", {}))
    return begun


def _refuse_other(out: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if other := [name for name in ours if ours[name] != theirs.get(name)]:
        here, there = ({name: values.get(name) for name in other} for values in (ours, theirs))
        raise FileExistsError(f"{out} holds a pre-training with {there}, not {here}; choose another folder")


def _in_the_way(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and all(p.name.startswith(".") for p in out.iterdir()))


def _make_way(out: Path) -> None:
    """Rename existing files; remove the state of a pre-training of which nothing else is left."""
    if _in_the_way(out):
        move_aside(out)
    shutil.rmtree(out / ".state", ignore_errors=True)


def _tokenized(text: str, vocab: int) -> tuple[Any, Tensor]:
    """A byte-level BPE tokenizer trained on the text, and the text in its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.splitlines(keepends=True), trainer)
    size = bpe.get_vocab_size()
    check(size == vocab, f"the text is too short for a vocabulary of {vocab}: it has merges for {size}")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    return tokenizer, torch.tensor(bpe.encode(text).ids)


def _new_model(sizes: Mapping[str, int], seed: int) -> nn.Module:
    """A GPT-NeoX with Hugging Face's initial weights, a pure function of its arguments."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        intermediate_size=4 * sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=2048,  # Pythia's: rotary positions have no end, and readers cut prompts here
        bos_token_id=0,
        eos_token_id=0,
    )  # the rest is Pythia's: parallel residual, gelu, a quarter of each head rotates, read-out of its own
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators, too
        return GPTNeoXForCausalLM(config)


def _drive(
    out: Path, training: Training, held: Text, tokenizer: Any, steps: list[int], dtype: torch.dtype, progress: bool
) -> None:
    from tqdm.auto import tqdm

    state = out / ".state" / "state.safetensors"
    batch = held.sample(256, seed=0, device=next(training.model.parameters()).device)
    if state.exists():
        with defer_sigint():  # torch turns a Ctrl-C during loading into a ValueError
            training.load_state_dict(read_tensors(state))
    bar = tqdm(total=steps[-1], initial=training.t, unit="step", disable=not progress)

    def visit(step: Step) -> None:
        with defer_sigint():
            bar.n = step.t
            bar.update(0)
            if step.t in steps and not (out / f"step{step.t}").exists():
                with torch.no_grad():
                    loss = held.loss(training.model(batch.inputs), batch)
                _log(out / "metrics.jsonl", step, loss)
                _save(out / f"step{step.t}", training.model, tokenizer, dtype)
                write_tensors(state, training.state_dict())  # last: when it exists, the checkpoint of its step does

    try:
        visit(training.current)  # an interrupt may have come between a step and saving it
        for step in training:
            visit(step)
    except KeyboardInterrupt:
        with defer_sigint():
            write_tensors(state, training.state_dict())
        raise
    finally:
        bar.close()
    shutil.rmtree(state.parent, ignore_errors=True)


def _log(path: Path, step: Step, loss: Tensor) -> None:
    """Append the line of a saved step, replacing one that a kill left without its checkpoint."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    earlier = [line for line in lines if json.loads(line)["step"] < step.t]
    values = {"step": step.t, "loss": loss.item(), "train_loss": None if step.loss is None else step.loss.item()}
    write_atomically(path, lambda p: p.write_text("".join([*earlier, json.dumps(values) + "\n"])))


def _save(folder: Path, model: nn.Module, tokenizer: Any, dtype: torch.dtype) -> None:
    """Save a checkpoint in Hugging Face's layout, atomically."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with without_bars():
        deepcopy(model).to(dtype).save_pretrained(partial)  # type: ignore[operator]
        tokenizer.save_pretrained(partial)
    for path in partial.iterdir():
        with path.open("rb") as f:
            os.fsync(f.fileno())
    partial.rename(folder)
