"""`audit`: find steps of a suite that have the weights of other steps, or none, without downloading any.

    result = audit(pl.lm.pythia("2.8b"))
    result.duplicates, result.missing, result.evidence(0)

Of a Hub repository, the content hashes that its API lists are compared. Equal hashes are equal bytes, for certain;
unequal hashes show nothing, as the same weights, written again by another library, hash differently. Of local folders,
the tensors are compared (names, types, shapes, bytes), so that the layout of the files makes no difference, though the
sign of a zero does. No hash tells *which* of two equal steps is the right one, nor that a step which equals no other is
right: for that, check whether its weights and its loss are between those of its neighbors.
"""

import pickle
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from plateaulens._io import digest
from plateaulens.lm.known_issues import Report, reports_for
from plateaulens.lm.source import WEIGHTS, Source, list_steps, weight_files

Digests = dict[str, str]  # name of a file, or of a tensor -> digest of its content
Member = int | str  # a step, or "main"
_warned: set[Any] = set()  # what `warn_once` has warned about in this process


@runtime_checkable
class Audited(Protocol):
    """What an audit needs of a suite: its name, where its checkpoints are, and the steps that were announced."""

    name: str
    source: Source
    expected: tuple[int, ...] | None


@dataclass(frozen=True)
class Duplicate:
    """Steps that have the same weights, or some weight files in common.

    Attributes:
        steps: The steps, ascending.
        main: Whether the branch `main` has them too.
        files: The files that are the same, each with its digest.
        n_files: Number of weight files of a step; the weights are identical when `files` are as many.
        differ: Names of weight files in another format, which are not the ones that are read and are *not* all the
            same.
    """

    steps: tuple[int, ...]
    main: bool
    files: Digests
    n_files: int
    differ: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """The result of `audit`; see the module's docstring for what equal and unequal digests show.

    Attributes:
        name: Name of the suite.
        table: A row per step: revision, bytes and number of its weight files, digest of its weights, and `same_as`,
            the other steps (and "main") with identical weights.
        missing: Steps that were announced but have no checkpoint, or have one without weights.
        duplicates: Groups of steps with identical weights, except the last step and `main`, which should be identical.
        partial: Groups of steps that have only some weight files in common.
        reports: Public reports about this suite.
        last: The suite's last step.
    """

    name: str
    table: pd.DataFrame
    missing: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]
    partial: tuple[Duplicate, ...]
    reports: tuple[Report, ...]
    last: int

    def group(self, step: int) -> Duplicate | None:
        """The group of duplicates that the step should not be in; the last step may be in a group with `main`."""
        groups = (g for g in (*self.duplicates, *self.partial) if step in g.steps)
        return next((g for g in groups if not (g.main and step == self.last)), None)

    def evidence(self, step: int) -> str | None:
        """One line on what is wrong with the weights of a step; None when nothing is."""
        if step in self.missing:
            return "has no weights"
        return self._line(group, step) if (group := self.group(step)) else None

    def _line(self, group: Duplicate, step: int | None = None) -> str:
        whole = group.n_files == len(group.files)
        part = "the weights" if whole else f"{len(group.files)} of {group.n_files} weight files"
        others = [s for s in group.steps if s != step]
        names = list_steps(others) + ", the last" * (self.last in others)
        steps = [f"{len(others)} steps ({names})" if len(others) > 1 else f"step {names}"] if others else []
        members = " and ".join(["main"] * group.main + steps)
        verb = f"has {part} of" if step is not None else f"{part} are the same in"
        file, content = min(group.files.items())
        differ = "".join(f"; {name}, which is not read, differs among them" for name in group.differ)
        return f"{verb} {members} ({file} {content[:19]}){differ}"

    def to_json(self) -> dict[str, Any]:
        """The audit as a dict of plain values."""
        table = self.table.assign(same_as=self.table["same_as"].map(list)).reset_index().astype(object)
        return {
            "name": self.name,
            "last": self.last,
            "table": table.to_dict("records"),
            "missing": list(self.missing),
            "duplicates": [asdict(group) for group in self.duplicates],
            "partial": [asdict(group) for group in self.partial],
            "reports": [{k: v for k, v in vars(report).items() if k != "spans"} for report in self.reports],
        }

    def __repr__(self) -> str:
        lines = [f"missing: {list_steps(self.missing)}"] * bool(self.missing)
        lines += [self._line(group) for group in (*self.duplicates, *self.partial)]
        lines = lines or ["nothing is missing, and no two steps have weight files in common"]
        return "\n  ".join([f"Audit of {self.name}, {len(self.table)} steps:", *lines, *map(str, self.reports)])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.table.to_html(max_rows=20)}"


def audit(suite: Audited, steps: Sequence[int] | None = None, *, progress: bool = True) -> Audit:
    """Compare the weights of a suite's steps with each other, and with those of the branch `main`.

    This takes one call of the Hub's API per step and no download; of a local folder, every weight file is read once.
    Nothing is written, so an interrupted audit starts again.

    Args:
        suite: The suite, such as `Checkpoints`.
        steps: Steps to compare; all by default.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For an object that is not a suite, for a step that neither exists nor was announced, or when a
            local weight file cannot be read.
    """
    if not isinstance(suite, Audited):
        raise ValueError(
            f"audit takes a suite, such as pl.lm.pythia('14m') or pl.lm.from_folder(folder); got {suite!r}"
        )
    revisions, announced = suite.source.revisions(), set(suite.expected or ())
    wanted = {*revisions, *announced} if steps is None else set(steps)
    if unknown := sorted(wanted - {*revisions, *announced}):
        raise ValueError(f"{suite.name} has no step {list_steps(unknown)}; it has {list_steps(sorted(revisions))}")
    members: dict[Member, str] = {step: revision for step, revision in revisions.items() if step in wanted}
    if suite.source.main:
        members["main"] = suite.source.main
    bar = tqdm(members.items(), desc=f"audit {suite.name}", unit="revision", disable=not progress, leave=False)
    formats = {member: _formats(suite.source, revision) for member, revision in bar}
    identical, shared_files = _compare(formats)
    last = max(revisions)
    return Audit(
        name=suite.name,
        table=_table(members, formats, identical),
        missing=tuple(sorted(step for step in wanted if not formats.get(step))),
        duplicates=tuple(_group(g, formats) for g in identical.values() if len(g) > 1 and g != {last, "main"}),
        partial=tuple(_group(group, formats, files) for group, files in shared_files.items()),
        reports=tuple(reports_for(suite.name)),
        last=last,
    )


def _compare(
    formats: Mapping[Member, Sequence["_Format"]],
) -> tuple[dict[str, set[Member]], dict[frozenset[Member], Digests]]:
    """Digest of all weights -> the steps with identical ones; and groups of steps -> some files that they share."""
    identical: defaultdict[str, set[Member]] = defaultdict(set)
    by_file: defaultdict[tuple[str, str], set[Member]] = defaultdict(set)
    for member, forms in formats.items():
        for form in forms if member == "main" else forms[:1]:  # a step may equal any format of main
            identical[form.digest].add(member)
            for file_and_digest in form.files.items():
                by_file[file_and_digest].add(member)
    shared: defaultdict[frozenset[Member], Digests] = defaultdict(dict)
    for (file, content), group in by_file.items():
        if len(group) > 1 and not any(group <= whole for whole in identical.values()):
            shared[frozenset(group)][file] = content
    return identical, shared


def _table(
    members: Mapping[Member, str], formats: Mapping[Member, Sequence["_Format"]], identical: Mapping[str, set[Member]]
) -> pd.DataFrame:
    rows = []
    for step, forms in formats.items():
        if step == "main":
            continue
        form = forms[0] if forms else _Format("", 0, {}, "")
        others = identical[form.digest] - {step} if forms else ()
        rows.append(
            {
                "step": step,
                "revision": members[step],
                "bytes": form.size,
                "files": len(form.files),
                "digest": form.digest,
                "same_as": tuple(sorted(others, key=lambda member: (member == "main", member))),
            }
        )
    columns = ["step", "revision", "bytes", "files", "digest", "same_as"]
    return pd.DataFrame(rows, columns=columns).set_index("step")


def warn_once(name: str, step: int, audit: Audit | None = None) -> None:
    """Warn that a step may have other weights than its name says, once per group of steps.

    Args:
        name: Name of the suite.
        step: Step that is about to be measured.
        audit: Audit of this suite; its evidence comes before public reports.
    """
    line, group = (audit.evidence(step), audit.group(step)) if audit is not None else (None, None)
    key = (name, group.steps if group else step)
    parts = [line] if line and key not in _warned else []
    new = [report for report in reports_for(name, step) if report.warns and (name, report) not in _warned]
    if new:  # the first is the most specific
        parts.append("; also ".join([str(new[0]), *(f"{report.url} ({report.date})" for report in new[1:])]))
    if not parts:
        return
    _warned.update([key] * bool(line), ((name, report) for report in new))
    if audit is None:
        parts.append(f"run `plateaulens checkpoints audit {name}`")
    elif not line and step in audit.table.index:
        parts.append(f"among {len(audit.table)} audited steps no other has a weight file of this one")
    warnings.warn(f"{name}, step {step}: {'; '.join(parts)}", stacklevel=3)


@dataclass(frozen=True)
class _Format:
    """The weights of a revision in one file format.

    Attributes:
        name: Name of the weight file, such as model.safetensors.
        size: Bytes of all its files.
        files: Each file with its digest.
        digest: One digest of them all.
    """

    name: str
    size: int
    files: Digests
    digest: str


def _formats(source: Source, revision: str) -> list[_Format]:
    """The formats in which a revision has its weights, first the one that is read; none when it has no weights."""
    listed, formats = source.files(revision), list[_Format]()
    for name in WEIGHTS:
        try:
            files = weight_files([f for f in listed if f.path.startswith(name.partition(".")[0])])
        except ValueError:
            continue
        files = [f for f in files if not f.path.endswith(".index.json")]  # the same at every step, without weights
        digests = {f.path: f.digest for f in files}
        size = sum(f.size for f in files)
        if files and all(digests.values()):
            formats.append(_Format(name, size, digests, _combine(digests)))
        elif files and not formats:  # files without a listed digest: read them, only in the format that is used
            formats.append(_read_format(name, size, source.fetch(revision, files), [f.path for f in files]))
    return formats


def _read_format(name: str, size: int, folder: Path, paths: Sequence[str]) -> _Format:
    """A format with the digests of the tensors in its files."""
    tensors = {path: _read(folder / path, (folder / path).stat().st_mtime_ns) for path in paths}
    digest_of_all = _combine({tensor: value for part in tensors.values() for tensor, value in part.items()})
    return _Format(name, size, {path: _combine(part) for path, part in tensors.items()}, digest_of_all)


@lru_cache(maxsize=4096)
def _read(path: Path, modified: int) -> Digests:
    """The digests of the tensors in a weight file; read again only if its time of modification differs."""
    return dict(_tensors(path))


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Each tensor of a weight file with its digest; of safetensors, one tensor at a time is in memory."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as f:
                yield from ((name, f"sha256:{digest(f.get_tensor(name))}") for name in f.keys())  # noqa: SIM118 (not a dict)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            yield from ((name, f"sha256:{digest(value)}") for name, value in state.items() if isinstance(value, Tensor))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); leave its step out with steps=") from error


def _combine(digests: Digests) -> str:
    return f"sha256:{sha256(repr(sorted(digests.items())).encode()).hexdigest()}"


def _group(
    members: Set[Member], formats: Mapping[Member, Sequence[_Format]], shared: Digests | None = None
) -> Duplicate:
    """A group of steps with identical weights, or with the `shared` files in common."""
    steps = tuple(sorted(member for member in members if isinstance(member, int)))
    read = formats[steps[0]][0]
    same_files = all(any(read.files == form.files for form in formats[member]) for member in members)
    files = shared or (read.files if same_files else {"tensors": read.digest})  # equal tensors in another layout
    others: defaultdict[str, set[str]] = defaultdict(set)
    for form in (form for member in members for form in formats[member] if form.name != read.name):
        others[form.name].add(form.digest)
    differ = tuple(name for name, digests in others.items() if len(digests) > 1)
    return Duplicate(steps, "main" in members, files, len(read.files if shared else files), differ)
