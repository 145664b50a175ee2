"""`HubSource`: checkpoints on the Hugging Face Hub, in a cache of bounded size, each file verified by its hash.

    source = HubSource("EleutherAI/pythia-14m")
    source.revisions()                                   # {0: "step0", 1: "step1", 2: "step2", ...}
    folder = source.fetch("step0", source.files("step0"))

Requests are made by `hub_client.HubClient`.
"""

import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from plateaulens.lm.hub_client import LARGE, HubClient, size_of
from plateaulens.lm.source import STEP, File, steps_of

REPO = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TRIES = 3  # downloads of a file whose bytes are wrong
MARKS = ".verified"  # folder of empty files, whose names identify verified files in their present state


class HubSource:
    """A repository whose branches (or tags) are named by step.

    Threads and processes may share a cache. To read files after `fetch`, hold `lock` from before the call until they
    are read; else another process may evict them in between.

    Attributes:
        name: Name of the repository.
        pattern: Regular expression whose first group is the step in a revision's name.
        main: The main branch, known once the revisions were listed.
        max_bytes: Largest size of `folder` at any moment, partial files included; None for no limit.
        folder: Cache of this repository, with a sub-folder per commit.
        lock: Context manager that `fetch` and `evict` hold; re-entrant within a thread.
        client: Makes the requests.

    Raises:
        ValueError: For a name that no repository can have.
    """

    def __init__(
        self,
        repo: str,
        pattern: str = STEP.pattern,
        *,
        max_bytes: int | None = None,
        cache: str | Path | None = None,
        token: str | bool | None = None,
    ) -> None:
        from filelock import FileLock

        if not REPO.fullmatch(repo):  # the cache's folder is named after it
            raise ValueError(f"{repo!r} cannot be a repository; expected a name such as 'EleutherAI/pythia-14m'")
        cache = cache or os.environ.get("PLATEAULENS_CACHE") or Path.home() / ".cache" / "plateaulens"
        self.name, self.max_bytes, self.client = repo, max_bytes, HubClient(repo, token)
        self.folder = Path(cache).expanduser().absolute() / repo.replace("/", "--")
        self._lock = FileLock(self.folder / ".lock", is_singleton=True)  # one for all objects, each thread for itself
        self.lock: AbstractContextManager[Any] = self._lock
        self.main: str | None = None
        self.pattern = pattern
        self._known: _Refs | None = None
        self._listed: dict[str, list[File]] = {}
        self._listing = threading.RLock()

    # Listings.

    def revisions(self) -> dict[int, str]:
        """Step -> branch (or tag, if no branch is named by a step), ascending, from one request.

        Raises:
            ValueError: When no revision has a step, two have the same, or there is no such repository.
            ConnectionError: When the Hub does not answer.
        """
        for revisions in (self._refs.branches, self._refs.tags):
            if steps := steps_of(list(revisions), self.pattern):
                return steps
        names = [*self._refs.branches, *self._refs.tags][:8]
        raise ValueError(f"{self.name} has no revision with a step by {self.pattern!r}; its revisions: {names}")

    def commit(self, revision: str) -> str:
        """The commit of a branch or tag, as it was when the revisions were first listed.

        Raises:
            ValueError: When there is no such revision.
        """
        if COMMIT.fullmatch(revision):
            return revision
        commits = self._refs.tags | self._refs.branches
        if revision not in commits:
            near = get_close_matches(revision, commits, 3, 0)
            raise ValueError(f"{self.name} has no revision {revision!r} among its {len(commits)}; nearest: {near}")
        return commits[revision]

    def files(self, revision: str) -> list[File]:
        """The files of a revision with their digests, from one request.

        Raises:
            ValueError: When there is no such revision.
            ConnectionError: When the Hub does not answer.
        """
        commit = self.commit(revision)
        with self._listing:
            if commit not in self._listed:
                what = f"the files of {self.name}@{revision}"
                self._listed[commit] = self.client.listing(f"tree/{commit}?recursive=true", _files_of, what)
            return list(self._listed[commit])

    @property
    def _refs(self) -> "_Refs":
        with self._listing:
            if self._known is None:
                self._known = self.client.listing("refs", _refs_of, f"the revisions of {self.name}")
                self.main = "main" if "main" in self._known.branches else None
            return self._known

    # The cache.

    @property
    def used(self) -> int:
        """Bytes in `folder`."""
        return sum(map(size_of, _files(self.folder)))

    def fetch(self, revision: str, files: list[File]) -> Path:
        """A folder with these files, each verified by its digest; verified files in the cache are not downloaded again.

        The revisions that were not fetched for the longest time are evicted when room is needed.

        Raises:
            ValueError: When the files exceed `max_bytes`, when wrong bytes are received repeatedly, or for a missing
                file.
            ConnectionError: When the Hub does not answer.
            InterruptedError: When it was stopped.
        """
        from tqdm.auto import tqdm

        began = self.client.stops
        folder = self.folder / (commit := self.commit(revision))
        for file in files:
            if not (folder / file.path).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{self.name}@{revision} has a file {file.path!r}, which would be outside the cache")
        with self._locked(began):
            missing = [file for file in files if not _is_verified(folder, file)]
            self._make_room(folder, files)
            much = sum(file.size for file in missing)
            if much >= LARGE and self.client.progress is not False:
                tqdm.write(f"{self.name}@{revision}: {tqdm.format_sizeof(much, 'B')} to fetch", file=sys.stderr)
            for file in missing:
                self._obtain(commit, folder, file, f"{file.path} of {self.name}@{revision}", began)
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder, ns=(now := time.time_ns(), now))  # the order of eviction
        return folder

    def evict(self, revision: str) -> None:
        """Remove the cached files of a revision, if there are any."""
        with self.lock:
            _remove(self.folder / self.commit(revision))

    def stop(self) -> None:
        """End running downloads with an InterruptedError; the next fetch continues them.

        On a Hub that hangs this takes up to `client.timeout` seconds.
        """
        self.client.stop()

    def __repr__(self) -> str:
        return f"HubSource({self.name!r})"

    # Room.

    @contextmanager
    def _locked(self, began: int) -> Iterator[None]:
        from filelock import Timeout

        while True:
            self.client.raise_if_stopped(began)
            try:
                self._lock.acquire(timeout=0.2)  # short, so that `stop` is noticed while another process holds it
                break
            except Timeout:
                continue
        try:
            yield
        finally:
            self._lock.release()

    def _make_room(self, folder: Path, files: list[File]) -> None:
        needed = sum({file.path: file.size for file in files}.values())
        if self.max_bytes is None:
            return
        if needed > self.max_bytes:
            raise ValueError(
                f"{len(files)} files of {self.name} need {needed:,} bytes and the cache may hold {self.max_bytes:,}; "
                "raise max_bytes, or choose a smaller model"
            )
        wanted = {path for file in files for path in (folder / file.path, _partial(folder / file.path))}
        for least_used in self._evictable(folder, wanted):
            if sum(size_of(p) for p in _files(self.folder) if p not in wanted) + needed <= self.max_bytes:
                break
            _remove(least_used)

    def _evictable(self, folder: Path, wanted: set[Path]) -> list[Path]:
        """Other revisions, the least recently fetched first, then unneeded files of this one."""
        others = [path for path in self.folder.iterdir() if path.is_dir() and path != folder]
        unneeded = [path for path in _files(folder) if path not in wanted and size_of(path)]
        return [*sorted(others, key=lambda path: path.stat().st_mtime_ns), *unneeded]

    # Downloads.

    def _obtain(self, commit: str, folder: Path, file: File, what: str, began: int) -> None:
        """Download a file, verify it and only then give it its name; repeated for wrong bytes."""
        path, got = folder / file.path, ""
        part = _partial(path)
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            came = self.client.download(commit, file.path, part, file.size, what, began)
            with part.open("rb") as f:
                os.fsync(f.fileno())
            got = _digest(part, file.digest) if came == file.size else f"{came} bytes"
            if got == file.digest:
                os.replace(part, path)
                _mark(folder, file).parent.mkdir(exist_ok=True)
                _mark(folder, file).touch()
                return
            part.unlink()
        raise ValueError(
            f"{what} had wrong bytes {TRIES} times: expected {file.size} bytes, {file.digest}, got {got}; nothing "
            "of it is kept or measured. Try again later, or leave this step out"
        )


class _Refs(NamedTuple):
    """Commits by the names of branches and tags."""

    branches: dict[str, str]
    tags: dict[str, str]


def _refs_of(pages: list[Any]) -> _Refs:
    return _Refs(*({ref["name"]: ref["targetCommit"] for ref in pages[0][kind]} for kind in _Refs._fields))


def _files_of(pages: list[Any]) -> list[File]:
    entries = [entry for page in pages for entry in page if entry["type"] == "file"]
    return [
        File(e["path"], e["size"], f"sha256:{e['lfs']['oid']}" if e.get("lfs") else f"git:{e['oid']}") for e in entries
    ]


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _files(folder: Path) -> Iterator[Path]:
    return (Path(at, name) for at, _, names in os.walk(folder) for name in names)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mark(folder: Path, file: File) -> Path:
    """The file that marks another as verified: empty, so it cannot be partial and takes no room."""
    stat = (folder / file.path).stat()
    record = f"{file.path} {file.digest} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return folder / MARKS / hashlib.sha256(record.encode()).hexdigest()


def _is_verified(folder: Path, file: File) -> bool:
    """Whether a file exists with the right bytes; a wrong one is removed."""
    path = folder / file.path
    if not path.is_file():
        return False
    mark = _mark(folder, file)  # computed before the file is read
    if mark.exists():
        return True
    if right := size_of(path) == file.size and _digest(path, file.digest) == file.digest:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    else:
        path.unlink()
    return right


def _digest(path: Path, like: str) -> str:
    """The digest of a file, of the same kind as `like`."""
    kind = "git" if like.startswith("git:") else "sha256"
    total = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if kind == "git" else hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            total.update(block)
    return f"{kind}:{total.hexdigest()}"
