"""`HubClient`: one repository on a Hugging Face Hub, asked patiently and refused in one line.

Everything travels through huggingface_hub's own session: its token, proxies, offline mode and errors. Its
`hf_hub_download` and `HfApi` are not used, for what 2.4 was seen to do: an interrupted download starts again from zero
(each attempt has a partial file of another name, and a killed one leaves it lying about), wrong bytes of the right
length are believed, a listing waits without limit on a Hub that hangs, and for as long as a busy one asks. Plain HTTP
also leaves out Xet, which knows no partial file that could be continued.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

LARGE = 10**8  # bytes that nobody should wait for without a word
BUSY = (408, 429, 500, 502, 503, 504)  # answers that another try may change
LOCAL = "folders of checkpoints open with plateaulens.local(folder)"

T = TypeVar("T")


class HubClient:
    """What a Hub says about a repository, and the bytes of its files.

    Attributes:
        name: the repository's name.
        token: as huggingface_hub's: None for the saved one, False for none.
        patience: seconds for which a busy or broken Hub is tried again, counted from the last byte that came.
        pause: seconds before the second try, then doubled each time.
        timeout: seconds without a byte after which a connection counts as broken.
        progress: whether a download shows a bar; None means that of a large file does.
        stops: how often `stop` was called; what began at an earlier count ends.
    """

    def __init__(self, name: str, token: str | bool | None = None) -> None:
        self.name, self.token = name, token
        self.patience, self.pause, self.timeout = 30.0, 1.0, 10.0
        self.progress: bool | None = None
        self.stops, self._reached = 0, False

    def listing(self, path: str, parse: Callable[[list[Any]], T], what: str) -> T:
        """What `parse` makes of the pages of a listing.

        Raises:
            ValueError: when there is no such repository or listing.
            ConnectionError: when the Hub does not answer, or not as a Hub does.
        """
        url, pages = f"{self._endpoint}/api/models/{self.name}/{path}", []
        while url:
            pages.append(self._patiently(partial(self._read, url), what, self.stops))
            url = pages[-1].links.get("next", {}).get("url", "")
        try:
            return parse([page.json() for page in pages])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConnectionError(
                f"{what}: {self._endpoint} does not answer as a Hub; is HF_ENDPOINT right?"
            ) from error

    def download(self, commit: str, path: str, part: Path, size: int, what: str, began: int) -> int:
        """Append to `part` what it lacks of a file; how many bytes it would have, up to the first that is too many.

        Raises:
            ValueError: when there is no such file.
            ConnectionError: when the Hub does not answer.
            InterruptedError: when it was stopped.
        """
        url = f"{self._endpoint}/{self.name}/resolve/{commit}/{quote(path)}"
        return self._patiently(partial(self._append, url, part, size, what, began), what, began, part)

    def stop(self) -> None:
        """End what is on its way now with an InterruptedError.

        A Hub that hangs is noticed to hang within `timeout` seconds, and no sooner.
        """
        self.stops += 1

    def go_on(self, began: int) -> None:
        """Raise an InterruptedError if `stop` was called since the count `began`."""
        if self.stops != began:
            raise InterruptedError(f"the download from {self.name} was stopped; the next one goes on where it was")

    @property
    def _endpoint(self) -> str:
        from huggingface_hub import constants

        return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")  # the constant is older than this call

    def _append(self, url: str, part: Path, size: int, what: str, began: int) -> int:
        from tqdm.auto import tqdm

        part.touch()
        have, shown = size_of(part), size >= LARGE if self.progress is None else self.progress
        if have >= size:  # killed after the last byte
            return have
        with (
            self._open(url, {"Range": f"bytes={have}-"} if have else {}) as response,
            part.open("ab", buffering=0) as out,
            tqdm(desc=what, total=size, initial=have, unit="B", unit_scale=True, disable=not shown, leave=False) as bar,
        ):
            if response.status_code != 206:  # all of it, from the start
                out.truncate(have := 0)
            for chunk in response.iter_bytes():
                self.go_on(began)
                have += len(chunk)
                if have > size:  # wrong, and there may be no room for it
                    break
                out.write(chunk)
                bar.update(len(chunk))
        return have

    def _read(self, url: str) -> Any:
        with self._open(url, {}) as response:
            response.read()
            return response

    @contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity", **headers}
        with get_session().stream("GET", url, headers=headers, timeout=self.timeout) as response:
            self._reached = True
            hf_raise_for_status(response)
            yield response

    def _patiently(self, attempt: Callable[[], T], what: str, began: int, part: Path | None = None) -> T:
        """What `attempt` returns, tried again while the Hub is busy or the line breaks and `patience` lasts."""
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

        since, pause, have = time.monotonic(), self.pause, size_of(part)
        while True:
            self.go_on(began)
            try:
                result = attempt()
                self.go_on(began)  # who lists and then fetches must not miss a `stop` in between
                return result
            except (HTTPError, OfflineModeIsEnabled) as error:
                if size_of(part) > have:
                    since, pause, have = time.monotonic(), self.pause, size_of(part)
                wait = max(pause, asked := _asked(error))
                if not self._may_pass(error) or time.monotonic() - since + wait > self.patience:
                    raise self._refusal(error, what, asked) from error
            until, pause = time.monotonic() + wait, min(2 * pause, 8 * self.pause)
            while (left := until - time.monotonic()) > 0:
                self.go_on(began)
                time.sleep(min(left, 0.1))

    def _may_pass(self, error: Exception) -> bool:
        """Whether another try may end otherwise; a Hub that never answered is not waited for."""
        status = _status(error)
        return status in BUSY if status else self._reached and not isinstance(error, ConnectionError)

    def _refusal(self, error: Exception, what: str, asked: float) -> Exception:
        """The client's error in one line: what was wrong, what came, what to do."""
        from huggingface_hub import errors

        hub, status = self._endpoint, _status(error)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return ConnectionError(f"{what}: huggingface_hub is offline; unset HF_HUB_OFFLINE. {LOCAL}")
        if isinstance(error, errors.GatedRepoError):
            return ValueError(f"{what}: gated; accept its terms at {hub}/{self.name}, then `hf auth login` or token=")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return ValueError(
                f"{what}: {hub} shows no such repository ({status}); is the name right? A private one needs "
                f"`hf auth login` or token=. {LOCAL}"
            )
        if status == 404:
            return ValueError(f"{what}: not found at {hub} (404); list what is there with revisions() and files()")
        if status:
            later = f"it asks for {asked:.0f} s of patience" if asked else "try again later"
            return ConnectionError(f"{what}: {hub} answers {status} and went on doing so; {later}")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return ConnectionError(f"{what}: cannot reach {hub} ({reason}); is HF_ENDPOINT right, the network up? {LOCAL}")


def size_of(path: Path | None) -> int:
    """Bytes of a file; 0 of none, or of what another process moved meanwhile."""
    try:
        return path.stat().st_size if path and path.is_file() else 0
    except FileNotFoundError:
        return 0


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _asked(error: Exception) -> float:
    """Seconds that a busy Hub asks for: Retry-After, or until a used-up rate limit begins anew."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", {})
    if (after := headers.get("Retry-After", "")).isdigit():
        return float(after)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else 0.0
