"""Defer Ctrl-C until a critical block has ended."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import torch

T, P = TypeVar("T"), ParamSpec("P")


@contextmanager
def defer_sigint() -> Iterator[None]:
    """A SIGINT inside the block takes effect when the block ends.

    Only in the main thread, where Python delivers signals; elsewhere nothing needs holding back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda signum, frame: pending.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
    if pending:
        signal.raise_signal(signal.SIGINT)


class uninterruptible(AbstractContextManager[T], Generic[T]):  # noqa: N801 (reads as a verb, like `closing`)
    """`with uninterruptible(cm):` is `with cm:`, but a SIGINT can cut neither its entering nor its leaving.

    Python handles a SIGINT between any two instructions, also those of a context manager: hooks that are half
    attached, or half removed, would stay for ever. One that comes while `cm` is entered or left takes
    effect once it is out again; in the block itself Ctrl-C works as ever.
    """

    def __init__(self, inner: AbstractContextManager[T]) -> None:
        self._inner = inner
        self._before: Callable[..., Any] | None = None
        self._holding = True
        self._pending = False

    def __enter__(self) -> T:
        before = signal.getsignal(signal.SIGINT)
        if callable(before) and threading.current_thread() is threading.main_thread():
            self._before = before
            signal.signal(signal.SIGINT, self._handle)
        try:
            value = self._inner.__enter__()
        except BaseException:
            self._release()
            raise
        try:
            self._holding = False
            self._deliver()
            return value
        except BaseException as error:  # an interrupt that came too late to stop the entering
            self._holding = True
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._holding = True
        try:
            return self._inner.__exit__(kind, error, traceback)
        finally:
            self._release()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Python may call this at the very start of `__exit__`, before its first line.
        leaving = frame is not None and frame.f_code.co_name == "__exit__" and frame.f_locals.get("self") is self
        if self._holding or leaving:
            self._pending = True
        elif self._before is not None:
            self._before(signum, frame)

    def _release(self) -> None:
        ours = self._before is not None and signal.getsignal(signal.SIGINT) == self._handle
        if ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)
        self._holding = False
        self._deliver()

    def _deliver(self) -> None:
        if self._pending:
            self._pending = False
            signal.raise_signal(signal.SIGINT)


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """As the decorator `torch.no_grad()`, which a SIGINT at the wrong moment leaves on for ever."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with uninterruptible(torch.no_grad()):
            return function(*args, **kwargs)

    return call
