"""`Source`, the interface of where checkpoints are stored, and `LocalSource`, a folder of them."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference
STEP = re.compile(r"(?:^|[-_/])step[-_]?(\d+)(?![\d.])")


@dataclass(frozen=True)
class File:
    """A file of a checkpoint, as listed without reading it.

    Attributes:
        path: Path within the checkpoint's folder.
        size: Size in bytes.
        digest: Digest of the content, "sha256:..." or "git:..." (git's hash of a small file); "" when unknown.
    """

    path: str
    size: int
    digest: str = ""


@runtime_checkable
class Source(Protocol):
    """Where the checkpoints of a suite are stored.

    Attributes:
        name: Name of the repository or folder.
        main: The main branch, where there is one.
        max_bytes: Largest number of bytes that fetched files may take; None for no limit.
        lock: Context manager to hold while fetched files are read, so that no other process evicts them.
    """

    name: str
    main: str | None
    max_bytes: int | None
    lock: AbstractContextManager[Any]

    def revisions(self) -> dict[int, str]:
        """Step -> the name of its branch or folder, ascending; nothing is downloaded."""
        ...

    def files(self, revision: str) -> list[File]:
        """The files of a revision; nothing is downloaded."""
        ...

    def fetch(self, revision: str, files: list[File]) -> Path:
        """A folder with these files, complete and verified."""
        ...

    def stop(self) -> None:
        """End a `fetch` that runs in another thread."""
        ...


def weight_files(files: list[File]) -> list[File]:
    """The files with a checkpoint's weights: one, or an index with its shards; safetensors before pickles.

    Raises:
        ValueError: When there are none.
    """
    by_name = {f.path: f for f in files}
    for name in WEIGHTS:
        if name in by_name:
            return [by_name[name]]
        if f"{name}.index.json" in by_name:
            stem, dot, suffix = name.rpartition(".")
            shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(dot + suffix)}")
            return [by_name[f"{name}.index.json"], *(f for f in files if shard.fullmatch(f.path))]
    raise ValueError(f"no weights among {sorted(by_name)[:8]}; expected {' or '.join(WEIGHTS)} (or their shards)")


def steps_of(names: list[str], pattern: str | re.Pattern[str] = STEP) -> dict[int, str]:
    """Step -> name, ascending, for the names that contain a step number.

    Raises:
        ValueError: When two names have the same step.
    """
    steps: dict[int, str] = {}
    for name in names:
        if match := re.search(pattern, name):
            step = int(match[1])
            if steps.setdefault(step, name) != name:
                raise ValueError(
                    f"{steps[step]!r} and {name!r} are both step {step}; tell them apart with pattern=, a regular "
                    "expression whose first group is the step"
                )
    return dict(sorted(steps.items()))


def list_steps(steps: Sequence[int]) -> str:
    """The steps as text; of more than four, the first three and the last."""
    return ", ".join(map(str, steps if len(steps) < 5 else [*steps[:3], "...", steps[-1]]))


class LocalSource:
    """Sub-folders `step0`, `step1`, ... in Hugging Face's layout.

    Raises:
        FileNotFoundError: When the folder does not exist, or has no such sub-folder.
    """

    def __init__(self, folder: str | Path, pattern: str = STEP.pattern) -> None:
        self.folder, self.name, self.pattern = Path(folder), Path(folder).resolve().name, pattern
        self.main: str | None = None
        self.max_bytes: int | None = None
        self.lock: AbstractContextManager[Any] = nullcontext()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {self.folder}")
        if not self.revisions():
            hint = (
                "; it is the folder of a run, open it with plateaulens.Run"
                if (self.folder / "run.json").is_file()
                else ""
            )
            raise FileNotFoundError(f"{self.folder} has no sub-folders step0, step1, ... with checkpoints{hint}")

    def revisions(self) -> dict[int, str]:
        return steps_of(sorted(p.name for p in self.folder.iterdir() if p.is_dir() and p.name[0] != "."), self.pattern)

    def files(self, revision: str) -> list[File]:
        folder = self.folder / revision
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        return [File(p.relative_to(folder).as_posix(), p.stat().st_size) for p in paths]

    def fetch(self, revision: str, files: list[File]) -> Path:
        return self.folder / revision

    def stop(self) -> None:
        pass  # nothing is downloaded

    def __repr__(self) -> str:
        return f"LocalSource({str(self.folder)!r})"
