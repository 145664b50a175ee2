"""Which checkpoints of a suite are what their names say, without downloading any.

    found = audit(pl.lm.pythia("2.8b"))
    found.duplicates, found.missing, found.evidence(0)

Of a Hub repository, the content hashes that its API lists are compared: equal hashes are equal bytes, for certain.
Unequal hashes show nothing: the same weights, written again by another library, hash differently. Of local folders,
the tensors themselves are compared (names, types, shapes, bytes), so that another file layout makes no difference,
though the sign of a zero does. No hash tells *which* of two equal steps is the right one, nor that a step which equals
no other is right: for that, see whether its weights and its loss lie between those of its neighbors.
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
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from plateaulens._io import digest
from plateaulens.lm.known_issues import Report, reports_for
from plateaulens.lm.source import WEIGHTS, few, weight_files

Digests = dict[str, str]  # name of a file, or of a tensor -> digest of its content
_told: set[Any] = set()  # what `warn_once` has said in this process


@dataclass(frozen=True)
class Duplicate:
    """Steps that serve the same weights, or the same part of them.

    Attributes:
        steps: ascending.
        main: whether the branch `main` serves them too.
        files: what is the same, each with its digest.
        of: how many weight files there are; the weights are identical when `files` are as many.
        differ: weights in another format that lie beside these, are not the ones read, and are *not* all the same.
    """

    steps: tuple[int, ...]
    main: bool
    files: Digests
    of: int
    differ: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What an audit found; the module says what equal and unequal digests show.

    Attributes:
        name: of the suite.
        table: a row per step: revision, bytes and number of its weight files, digest of its weights, and `same_as`,
            the other steps (and "main") that serve the very same weights.
        missing: steps that were announced but are not there, or that are there without weights.
        duplicates: groups of steps with identical weights, except the last step and `main`, which should be.
        partial: groups of steps that have only some weight files in common.
        reports: public reports about this suite, as reported.
        last: the suite's last step.
    """

    name: str
    table: pd.DataFrame
    missing: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]
    partial: tuple[Duplicate, ...]
    reports: tuple[Report, ...]
    last: int

    def group(self, step: int) -> Duplicate | None:
        """The duplicates among which the step should not be; the last step may be among those of `main`."""
        groups = (g for g in (*self.duplicates, *self.partial) if step in g.steps)
        return next((g for g in groups if not (g.main and step == self.last)), None)

    def evidence(self, step: int) -> str | None:
        """What is wrong with the step, in a line; None when nothing was found."""
        if step in self.missing:
            return "has no weights"
        return self._line(group, step) if (group := self.group(step)) else None

    def _line(self, group: Duplicate, step: int | None = None) -> str:
        what = "the weights" if group.of == len(group.files) else f"{len(group.files)} of {group.of} weight files"
        rest = [s for s in group.steps if s != step]
        names = few(rest) + ", the last" * (self.last in rest)
        steps = [f"{len(rest)} steps ({names})" if len(rest) > 1 else f"step {names}"] if rest else []
        others = ["main"] * group.main + steps
        verb = f"serves {what} of" if step is not None else f"{what} are the same in"
        file, digest = min(group.files.items())
        differ = "".join(f"; {form}, which is not read, differs among them" for form in group.differ)
        return f"{verb} {' and '.join(others)} ({file} {digest[:19]}){differ}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        table = self.table.assign(same_as=self.table["same_as"].map(list)).reset_index().astype(object)
        return {
            "name": self.name,
            "last": self.last,
            "table": table.to_dict("records"),
            "missing": list(self.missing),
            "duplicates": [asdict(group) for group in self.duplicates],
            "partial": [asdict(group) for group in self.partial],
            "reports": [{k: v for k, v in vars(report).items() if k != "steps"} for report in self.reports],
        }

    def __repr__(self) -> str:
        found = [f"missing: {few(self.missing)}"] * bool(self.missing)
        found += [self._line(group) for group in (*self.duplicates, *self.partial)]
        found = found or ["nothing is missing, and no two steps have weight files in common"]
        return "\n  ".join([f"Audit of {self.name}, {len(self.table)} steps:", *found, *map(str, self.reports)])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.table.to_html(max_rows=20)}"


def audit(suite: Any, steps: Sequence[int] | None = None, progress: bool = True) -> Audit:
    """Compare the weights of a suite's steps with each other, and with those of `main`.

    It costs one call of the Hub's API per step and no download; of a local folder, every weight file is read once.
    Nothing is written, so after an interrupt one starts again.

    Args:
        suite: a `Checkpoints`: its `name`, `source` and `expected` are all that is needed.
        steps: to compare; None means all.
        progress: whether to show a bar.

    Raises:
        ValueError: for anything else than a suite, when a step is neither there nor announced, or when a local weight
            file cannot be read.
    """
    if not hasattr(suite, "source"):
        raise ValueError(
            f"an audit is of a suite, such as pl.lm.pythia('14m') or pl.lm.from_folder(folder); got {suite!r}"
        )
    revisions, expected = suite.source.revisions(), set(suite.expected or ())
    wanted = {*revisions, *expected} if steps is None else set(steps)
    if unknown := sorted(wanted - {*revisions, *expected}):
        raise ValueError(f"{suite.name} has no step {few(unknown)}; it has {few(sorted(revisions))}")
    there: dict[int | str, str] = {step: revision for step, revision in revisions.items() if step in wanted}
    if main := getattr(suite.source, "main", None):
        there["main"] = main
    bar = tqdm(there.items(), desc=f"audit {suite.name}", unit="revision", disable=not progress, leave=False)
    served = {who: _forms(suite.source, revision) for who, revision in bar}

    whole, single = defaultdict(set), defaultdict(set)
    for who, forms in served.items():
        for form in forms if who == "main" else forms[:1]:  # a step has the weights of main in whatever format
            whole[form.digest].add(who)
            for item in form.files.items():
                single[item].add(who)
    shared: defaultdict[frozenset[int | str], Digests] = defaultdict(dict)
    for (file, content), members in single.items():
        if len(members) > 1 and not any(members <= w for w in whole.values()):
            shared[frozenset(members)][file] = content
    last = max(revisions)
    same = {who: whole[forms[0].digest] - {who} for who, forms in served.items() if forms}
    rows = [
        {"step": step, "revision": there[step], "bytes": form.size, "files": len(form.files), "digest": form.digest}
        | {"same_as": tuple(sorted(same.get(step, ()), key=lambda who: (who == "main", who)))}
        for step, form in ((who, (*forms, _Form("", 0, {}, ""))[0]) for who, forms in served.items() if who != "main")
    ]
    return Audit(
        name=suite.name,
        table=pd.DataFrame(rows, columns=["step", "revision", "bytes", "files", "digest", "same_as"]).set_index("step"),
        missing=tuple(sorted(step for step in wanted if not served.get(step))),
        duplicates=tuple(_group(w, served) for w in whole.values() if len(w) > 1 and w != {last, "main"}),
        partial=tuple(_group(members, served, files) for members, files in shared.items()),
        reports=tuple(reports_for(suite.name)),
        last=last,
    )


def warn_once(name: str, step: int, audit: Audit | None = None) -> None:
    """Warn that a step about to be measured may have other weights than its name says, once per group of steps.

    Args:
        name: of the suite.
        step: about to be measured.
        audit: of this suite; what it found comes before what was reported in public.
    """
    line, group = (audit.evidence(step), audit.group(step)) if audit is not None else (None, None)
    found = (name, group.steps if group else step)
    said = [line] if line and found not in _told else []
    new = [report for report in reports_for(name, step) if report.warns and (name, report) not in _told]
    if new:  # the first is the nearest to the point
        said.append("; also ".join([str(new[0]), *(f"{report.url} ({report.date})" for report in new[1:])]))
    if not said:
        return
    _told.update([found] * bool(line), ((name, report) for report in new))
    if audit is None:
        said.append(f"run `plateaulens checkpoints audit {name}`")
    elif not line and step in audit.table.index:
        said.append(f"among {len(audit.table)} audited steps no other has a weight file of this one")
    warnings.warn(f"{name}, step {step}: {'; '.join(said)}", stacklevel=3)


@dataclass(frozen=True)
class _Form:
    """The weights of a revision in one format: its files by digest, and a digest of them all."""

    name: str
    size: int
    files: Digests
    digest: str


def _forms(source: Any, revision: str) -> list[_Form]:
    """The formats in which a revision has its weights, the one that is read first; none when it has no weights."""
    listed, found = source.files(revision), []
    for name in WEIGHTS:
        try:
            files = weight_files([f for f in listed if f.path.startswith(name.partition(".")[0])])
        except ValueError:
            continue
        files = [f for f in files if not f.path.endswith(".index.json")]  # the same for every step, and no weights
        digests = {f.path: f.digest for f in files}
        size = sum(f.size for f in files)
        if files and all(digests.values()):
            found.append(_Form(name, size, digests, _combine(digests)))
        elif files and not found:  # nobody has hashed these: read them, in the format that is read only
            folder = source.fetch(revision, files)
            tensors = {f.path: _read(folder / f.path, (folder / f.path).stat().st_mtime_ns) for f in files}
            every = {name: digest for part in tensors.values() for name, digest in part.items()}
            found.append(_Form(name, size, {path: _combine(part) for path, part in tensors.items()}, _combine(every)))
    return found


@lru_cache(maxsize=4096)
def _read(path: Path, modified: int) -> Digests:
    """The tensors of a weight file; once, while it is not modified."""
    return dict(_tensors(path))


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Each tensor of a weight file with its digest; no more than the file is in memory, of safetensors one tensor."""
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


def _group(members: Set[int | str], served: Mapping[int | str, list[_Form]], part: Digests | None = None) -> Duplicate:
    steps = tuple(sorted(who for who in members if isinstance(who, int)))
    read = served[steps[0]][0]
    batch_by_length = all(any(read.files == form.files for form in served[who]) for who in members)
    files = part or (read.files if batch_by_length else {"tensors": read.digest})  # equal in another layout of files
    beside: defaultdict[str, set[str]] = defaultdict(set)
    for form in (form for who in members for form in served[who] if form.name != read.name):
        beside[form.name].add(form.digest)
    differ = tuple(name for name, digests in beside.items() if len(digests) > 1)
    return Duplicate(steps, "main" in members, files, len(read.files if part else files), differ)
