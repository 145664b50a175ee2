"""`HubClient`: listings and downloads of one repository on a Hugging Face Hub, with retries and one-line errors.

Requests use huggingface_hub's own session: its token, proxies, offline mode and errors. Its `hf_hub_download` and
`HfApi` are not used, because in version 2.4 an interrupted download starts again from zero (each attempt has a partial
file with another name, and a killed one leaves it behind), wrong bytes of the right length are accepted, and a listing
waits without limit for a Hub that hangs, or as long as a busy one asks. Plain HTTP also avoids Xet, which has no
partial files that could be continued.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

LARGE = 10**8  # bytes from which on a download shows a progress bar
BUSY = (408, 429, 500, 502, 503, 504)  # status codes after which another try may succeed
LOCAL = "folders of checkpoints are opened by pl.lm.from_folder(folder)"

T = TypeVar("T")


class HubClient:
    """Listings and files of a repository.

    Attributes:
        name: Name of the repository.
        token: As in huggingface_hub: None for the saved one, False for none.
        patience: Seconds for which a busy or broken Hub is tried again, counted from the last received byte.
        pause: Seconds before the second try, doubled for each further one.
        timeout: Seconds without a byte after which a connection counts as broken.
        progress: Whether a download shows a progress bar; None for large files only.
        stops: Number of calls of `stop`; requests that began at an earlier count end.
    """

    def __init__(self, name: str, token: str | bool | None = None) -> None:
        self.name, self.token = name, token
        self.patience, self.pause, self.timeout = 30.0, 1.0, 10.0
        self.progress: bool | None = None
        self.stops, self._reached = 0, False

    def listing(self, path: str, parse: Callable[[list[Any]], T], what: str) -> T:
        """The pages of a listing, parsed.

        Args:
            path: Path of the listing within the repository's API.
            parse: Function of the JSON pages.
            what: Description for error messages.

        Raises:
            ValueError: When there is no such repository or listing.
            ConnectionError: When the Hub does not answer, or the answer is not a Hub's.
        """
        url, pages = f"{self._endpoint}/api/models/{self.name}/{path}", []
        while url:
            pages.append(self._with_retries(partial(self._read, url), what, self.stops))
            url = pages[-1].links.get("next", {}).get("url", "")
        try:
            return parse([page.json() for page in pages])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConnectionError(
                f"{what}: {self._endpoint} does not answer as a Hub; is HF_ENDPOINT right?"
            ) from error

    def download(self, commit: str, path: str, part: Path, size: int, what: str, began: int) -> int:
        """Append the missing bytes of a file to the partial file `part`.

        Returns:
            Number of bytes of `part`, or `size` + 1 or more when the Hub sent too many.

        Raises:
            ValueError: When there is no such file.
            ConnectionError: When the Hub does not answer.
            InterruptedError: When it was stopped.
        """
        url = f"{self._endpoint}/{self.name}/resolve/{commit}/{quote(path)}"
        return self._with_retries(partial(self._append, url, part, size, what, began), what, began, part)

    def stop(self) -> None:
        """End running requests with an InterruptedError; on a Hub that hangs this takes up to `timeout` seconds."""
        self.stops += 1

    def raise_if_stopped(self, began: int) -> None:
        """Raise an InterruptedError if `stop` was called since the count `began`."""
        if self.stops != began:
            raise InterruptedError(f"the download from {self.name} was stopped; the next one continues it")

    @property
    def _endpoint(self) -> str:
        from huggingface_hub import constants

        return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip(
            "/"
        )  # `constants` was imported before this call

    def _append(self, url: str, part: Path, size: int, what: str, began: int) -> int:
        from tqdm.auto import tqdm

        part.touch()
        have, shown = size_of(part), size >= LARGE if self.progress is None else self.progress
        if have >= size:  # interrupted after the last byte
            return have
        with (
            self._open(url, {"Range": f"bytes={have}-"} if have else {}) as response,
            part.open("ab", buffering=0) as out,
            tqdm(desc=what, total=size, initial=have, unit="B", unit_scale=True, disable=not shown, leave=False) as bar,
        ):
            if response.status_code != 206:  # the Hub sends the whole file
                out.truncate(have := 0)
            for chunk in response.iter_bytes():
                self.raise_if_stopped(began)
                have += len(chunk)
                if have > size:  # wrong, and the disk may be full
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

    def _with_retries(self, attempt: Callable[[], T], what: str, began: int, part: Path | None = None) -> T:
        """The result of `attempt`, repeated while the Hub is busy or the connection breaks, within `patience`."""
        # The HTTP library behind HTTPError depends on the version of huggingface_hub.
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # pyright: ignore[reportPrivateImportUsage]

        since, pause, have = time.monotonic(), self.pause, size_of(part)
        while True:
            self.raise_if_stopped(began)
            try:
                result = attempt()
                self.raise_if_stopped(began)  # a `stop` between a listing and a download must not be missed
                return result
            except (HTTPError, OfflineModeIsEnabled) as error:
                if size_of(part) > have:
                    since, pause, have = time.monotonic(), self.pause, size_of(part)
                wait = max(pause, asked := _asked(error))
                if not self._is_transient(error) or time.monotonic() - since + wait > self.patience:
                    raise self._refusal(error, what, asked) from error
            until, pause = time.monotonic() + wait, min(2 * pause, 8 * self.pause)
            while (left := until - time.monotonic()) > 0:
                self.raise_if_stopped(began)
                time.sleep(min(left, 0.1))

    def _is_transient(self, error: Exception) -> bool:
        """Whether another try may succeed; a Hub that never answered is not tried again."""
        status = _status(error)
        return status in BUSY if status else self._reached and not isinstance(error, ConnectionError)

    def _refusal(self, error: Exception, what: str, asked: float) -> Exception:
        """The client's error as one line with its cause and what to do."""
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
            return ValueError(f"{what}: not found at {hub} (404); revisions() and files() list what exists")
        if status:
            later = f"it asks to wait {asked:.0f} s" if asked else "try again later"
            return ConnectionError(f"{what}: {hub} answered {status} at every try; {later}")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return ConnectionError(f"{what}: cannot reach {hub} ({reason}); is HF_ENDPOINT right, the network up? {LOCAL}")


def size_of(path: Path | None) -> int:
    """Bytes of a file; 0 when it does not exist, or another process moved it meanwhile."""
    try:
        return path.stat().st_size if path and path.is_file() else 0
    except FileNotFoundError:
        return 0


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _asked(error: Exception) -> float:
    """Seconds to wait that a busy Hub states: Retry-After, or until its rate limit is reset."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", {})
    if (after := headers.get("Retry-After", "")).isdigit():
        return float(after)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else 0.0
