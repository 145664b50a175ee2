"""A Hugging Face Hub on 127.0.0.1: folders served as revisions of a repository, with faults on demand.

    with Hub({"org/name": {"step0": folder0, "stage1-step150-tokens1B": folder1}}) as hub:
        hub.fail("cut", "model.safetensors", after=1000)   # once: the connection ends after 1000 bytes
        hub.url                                            # what HF_ENDPOINT has to be
        hub.log                                            # every request, with its range and the bytes sent
        online(monkeypatch, hub.url)                       # a test's own process reaches it, offline or not

Large files (`*.safetensors`, `*.bin`, or above a megabyte) are LFS: `/resolve/` redirects them to a second port, as the
Hub does to its CDN.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LFS_SIZE = 1_000_000
CHUNK = 1 << 16
RANGES = True  # whether parts of files are served when they are asked for


@dataclass
class Request:
    """What was asked, and how much was answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass
class Fault:
    """What goes wrong: `kind` at the file, or listing ("refs", "tree"), that `match` names.

    Kinds: "cut" and "reset" end the connection after `after` bytes of the body; "corrupt" changes the byte at `after`;
    "short" says and sends one byte less, "long" `after` (or one) more; "status" answers `status`; "slow" sends `rate`
    bytes a second; "hang" sends `after` bytes of the body and then nothing more; "late" answers after `after` seconds.
    """

    kind: str
    match: str
    revision: str | None = None
    times: int | None = 1
    after: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    rate: float = 1e6


@dataclass(frozen=True)
class Blob:
    path: Path
    size: int
    oid: str
    sha256: str | None  # of an LFS file

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def blob_of(path: Path) -> Blob:
    data = path.read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = path.suffix in (".safetensors", ".bin") or len(data) > LFS_SIZE
    return Blob(path, len(data), oid, hashlib.sha256(data).hexdigest() if lfs else None)


@dataclass
class Repo:
    branches: dict[str, str]
    tags: dict[str, str]
    commits: dict[str, dict[str, Blob]]

    def commit(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        return found if found in self.commits else None


class Hub:
    """Serve `{repository: {branch: folder}}`; `main` is the last folder unless it is given.

    Folders are read when the Hub starts. Two branches of one folder are two commits with the same files.
    """

    def __init__(self, repos: dict[str, dict[str, Path]], tags: dict[str, dict[str, Path]] | None = None) -> None:
        self.repos = {}
        for name, folders in repos.items():
            own = (tags or {}).get(name, {})
            main = {} if "main" in folders else {"main": [*folders.values(), *own.values()][-1]}
            commits: dict[str, dict[str, Blob]] = {}
            refs = [{b: self._commit(b, Path(f), commits) for b, f in some.items()} for some in (main | folders, own)]
            self.repos[name] = Repo(refs[0], refs[1], commits)
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self._guard = threading.Lock()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads, server.hub = True, self  # type: ignore[attr-defined]
            server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients may leave when they like
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    @staticmethod
    def _commit(branch: str, folder: Path, commits: dict[str, dict[str, Blob]]) -> str:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        blobs = {p.relative_to(folder).as_posix(): blob_of(p) for p in files}
        sha = hashlib.sha1(json.dumps([branch, [(p, b.oid) for p, b in blobs.items()]]).encode()).hexdigest()
        commits[sha] = blobs
        return sha

    def fail(self, kind: str, match: str = "*", **how: object) -> Fault:
        """Let a fault happen `times` times (None: always) to requests that match; see `Fault`."""
        self.faults.append(fault := Fault(kind, match, **how))  # type: ignore[arg-type]
        return fault

    def fault(self, repo: Repo, commit: str | None, what: str) -> Fault | None:
        """The fault that happens now, if any does."""
        with self._guard:
            for fault in self.faults:
                here = fault.revision is None or repo.commit(fault.revision) == commit
                if here and fnmatch(what, fault.match) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def requests(self, part: str = "", method: str = "GET") -> list[Request]:
        """Requests whose path contains `part`, but for a client's asking after itself."""
        return [r for r in self.log if part in r.path and r.method == method and "agent-harnesses" not in r.path]

    def sent(self, part: str = "") -> int:
        """Bytes of files sent."""
        return sum(r.sent for r in self.log if part in r.path and "/resolve/" in r.path)

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


def online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let this process reach `url` as its Hub, whatever the environment said when huggingface_hub was imported.

    The client looks at these constants at every request, so no session has to be made anew; its question which
    program runs it goes to the Hub that it was imported with, and is answered beforehand.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import _detect_agent

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_detect_agent, "_registry", {"standardEnvVars": [], "harnesses": {}})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its headers

    def do_GET(self) -> None:
        self.hub: Hub = self.server.hub  # type: ignore[attr-defined]
        token = self.headers.get("Authorization")
        self.request_log = Request(self.command, self.path, self.headers.get("Range"), token)
        self.hub.log.append(self.request_log)
        url = urlsplit(self.path)
        if match := re.fullmatch(
            r"/api/models/([^/]+(?:/[^/]+)?)/(refs|tree|revision)(?:/([^/]+)(?:/(.*))?)?", url.path
        ):
            self.api(match[1], match[2], unquote(match[3] or "main"), unquote(match[4] or ""), parse_qs(url.query))
        elif match := re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", url.path):
            self.resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)", url.path):
            self.api(match[1], "revision", "main", "", {})
        else:
            self.answer(404)

    do_HEAD = do_GET

    def api(self, name: str, what: str, revision: str, under: str, query: dict[str, list[str]]) -> None:
        if (repo := self.hub.repos.get(name)) is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        commit = None if what == "refs" else repo.commit(revision)
        if (fault := self.hub.fault(repo, commit, what)) and self.went_wrong(fault):
            return None
        if what == "refs":
            kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags), "converts": ("converts", {})}
            refs = {
                kind: [{"name": n, "ref": f"refs/{at}/{n}", "targetCommit": sha} for n, sha in some.items()]
                for kind, (at, some) in kinds.items()
            }
            return self.answer(200, body=json.dumps(refs).encode())
        if commit is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        blobs = repo.commits[commit]
        if what == "revision":
            info = {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": path} for path in blobs]}
            return self.answer(200, body=json.dumps(info).encode())
        prefix = f"{under.rstrip('/')}/" if under else ""
        inside = {path: blob for path, blob in blobs.items() if path.startswith(prefix)}
        if not inside:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        folders = {path[: i + len(prefix)] for path in inside if (i := path[len(prefix) :].find("/")) > 0}
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            inside = {path: blob for path, blob in inside.items() if "/" not in path[len(prefix) :]}
        tree: list[dict[str, object]] = [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders]
        for path, blob in inside.items():
            lfs = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.sha256 else {}
            tree.append({"type": "file", "path": path, "oid": blob.oid, "size": blob.size, **lfs})
        return self.answer(200, body=json.dumps(tree).encode())

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self.hub.repos.get(name)) is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if (commit := repo.commit(revision)) is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if (blob := repo.commits[commit].get(path)) is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        at_cdn = f":{self.server.server_port}" in self.hub.cdn  # type: ignore[attr-defined]
        about = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.sha256 and not at_cdn:
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            return self.answer(302, {**about, **linked, "Location": self.hub.cdn + self.path})
        fault = self.hub.fault(repo, commit, path) if self.command == "GET" else None
        if fault and self.went_wrong(fault):
            return None
        return self.send_file(blob, about, fault)

    def went_wrong(self, fault: Fault) -> bool:
        """Answer with a status or not at all; false for faults of a body."""
        if fault.kind == "status":
            self.answer(fault.status, fault.headers)
        elif fault.kind == "hang" and not fault.after:
            self.hub.closing.wait()
            self.close_connection = True
        elif fault.kind in ("cut", "reset") and not fault.after:
            self.hang_up(fault)
        else:
            if fault.kind == "late":
                self.hub.closing.wait(fault.after)
            return False
        return True

    def hang_up(self, fault: Fault) -> None:
        if fault.kind == "reset":  # a TCP reset instead of an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def send_file(self, blob: Blob, headers: dict[str, str], fault: Fault | None) -> None:
        data = blob.path.read_bytes()
        kind, after = (fault.kind, fault.after) if fault else ("", 0)
        if kind == "corrupt":
            data = data[:after] + bytes([data[after] ^ 1]) + data[after + 1 :]
        elif kind in ("short", "long"):
            data = data[:-1] if kind == "short" else data + b"!" * (after or 1)
        status, start = 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and RANGES:
            status, start = 206, int(asked[1])
            if start >= len(data):
                return self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.start(status, headers, len(data) - start)
        if self.command == "HEAD":
            return None
        end = min(len(data), start + after) if kind in ("cut", "reset", "hang") else len(data)
        step = max(1, min(CHUNK, int(fault.rate / 20))) if fault and kind == "slow" else CHUNK
        for at in range(start, end, step):
            self.wfile.write(data[at : min(at + step, end)])
            self.request_log.sent += min(at + step, end) - at
            if fault and kind == "slow" and self.hub.closing.wait(step / fault.rate):
                return None
        if fault and kind in ("cut", "reset"):
            if kind == "reset":
                time.sleep(0.1)  # a reset discards what is still on its way
            self.hang_up(fault)
        elif kind == "hang":
            self.hub.closing.wait()
            self.close_connection = True
        return None

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.start(status, headers or {}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(self, status: int, headers: dict[str, str], length: int) -> None:
        self.request_log.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
