"""`read_prompts`: questions from the package, from ARC-Easy or from a file.

read_prompts()                      # 100 that come with the package
read_prompts("arc-easy")            # arXiv 2506.13688, June version: the first 100 of ARC-Easy's test split
read_prompts("mine.txt")            # all lines of a file
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from plateaulens._registry import unknown
from plateaulens.lm.bundled_data import bundled


def read_prompts(
    source: str | Path | Sequence[str] = "built-in", n: int | None = None, *, seed: int | None = None
) -> list[str]:
    """The first `n` prompts of a set or a file, unchanged.

    Args:
        source: "built-in", "arc-easy" (the questions of its test split, from the Hub or its cache), or a text
            file with a prompt a line; blank lines are dropped. Or the prompts themselves.
        n: how many; by default 100 of a set, and all of a file or list.
        seed: shuffles all prompts before the first `n` are taken; in order unless given. The paper's last
            version shuffled too, without a seed: its subset is lost.

    Raises:
        ValueError: for a source that is neither a set nor a file, a file that is not UTF-8 or has no prompt,
            or fewer prompts than `n`.
        OSError: when ARC-Easy cannot be had, or a file cannot be read.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if isinstance(source, str) and source in SETS:
        prompts, n = SETS[source](), 100 if n is None else n
    elif not isinstance(source, str | Path):
        prompts = list(source)
    elif Path(source).is_file():
        prompts = _lines(Path(source))
    else:
        raise unknown("prompt set or file", str(source), SETS)
    if not prompts:
        raise ValueError(f"{str(source)!r} has no prompt, only blank lines")
    if n is not None and len(prompts) < n:
        raise ValueError(
            f"{str(source)!r} has {len(prompts)} prompts, fewer than n={n}; ask for {len(prompts)} at most"
        )
    if seed is not None:
        random.Random(seed).shuffle(prompts)
    return prompts[:n]


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors open a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return [line for line in text.split("\n") if line.strip()]


def _built_in() -> list[str]:
    return _lines(bundled("prompts.txt"))


def _arc_easy() -> list[str]:
    try:
        import datasets  # takes seconds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the prompts 'arc-easy' are read with the package datasets, which is not installed; run "
            "`pip install plateaulens[prompts]`, or use 'built-in' or a text file"
        ) from error
    try:
        questions = datasets.load_dataset("allenai/ai2_arc", "ARC-Easy", split="test")["question"]
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"ARC-Easy cannot be had: {reason}; go online once, or take 'built-in' or a text file") from error
    return list(questions)


SETS: dict[str, Callable[[], list[str]]] = {"built-in": _built_in, "arc-easy": _arc_easy}
