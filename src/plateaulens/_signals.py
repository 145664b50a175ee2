"""Defer Ctrl-C (SIGINT) until a critical section has ended, in the main thread.

with defer_sigint():                    # Ctrl-C takes effect after the block
    write(file)
with uninterruptible(model.hooks(...)): # Ctrl-C works in the block, but never leaves hooks half attached
    model(tokens)
"""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import torch

T = TypeVar("T")
P = ParamSpec("P")


def defer_sigint() -> AbstractContextManager[None]:
    """A context manager: a SIGINT inside the block takes effect when the block ends."""
    return uninterruptible(nullcontext(), defer_in_block=True)


class uninterruptible(AbstractContextManager[T], Generic[T]):  # noqa: N801 (reads as a verb, like `closing`)
    """`with uninterruptible(cm):` is `with cm:` where a SIGINT can interrupt neither entering nor leaving `cm`.

    Python handles a SIGINT between any two instructions, also inside a context manager, which could leave hooks
    attached for ever. A SIGINT while `cm` is entered or left takes effect afterwards; if it came while entering, `cm`
    is left again. The handler stays installed in the block because a SIGINT may come before the first line of
    `__exit__`.

    Args:
        inner: The context manager `cm`.
        defer_in_block: Whether a SIGINT in the block is deferred too, until the block has ended.
    """

    def __init__(self, inner: AbstractContextManager[T], *, defer_in_block: bool = False) -> None:
        self._inner, self._defer_in_block = inner, defer_in_block
        self._previous_handler: Callable[..., Any] | None = None
        self._deferring, self._pending = True, False

    def __enter__(self) -> T:
        handler = signal.getsignal(signal.SIGINT)
        # Python delivers signals to the main thread only; a handler that is no function ignores or kills.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._previous_handler = handler
            signal.signal(signal.SIGINT, self._handle)
        try:
            value = self._inner.__enter__()
        except BaseException:
            self._restore()
            raise
        try:
            self._deferring = self._defer_in_block
            if not self._deferring:
                self._deliver()
            return value
        except BaseException as error:  # a SIGINT that came while `inner` was entered
            self._deferring = True
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._deferring = True
        try:
            return self._inner.__exit__(kind, error, traceback)
        finally:
            self._restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Python may call this at the very start of `__exit__`, before its first line.
        leaving = frame is not None and frame.f_code.co_name == "__exit__" and frame.f_locals.get("self") is self
        if self._deferring or leaving:
            self._pending = True
        elif self._previous_handler is not None:
            self._previous_handler(signum, frame)

    def _restore(self) -> None:
        ours = self._previous_handler is not None and signal.getsignal(signal.SIGINT) == self._handle
        if ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous_handler)
        self._deferring = False
        self._deliver()

    def _deliver(self) -> None:
        if self._pending:
            self._pending = False
            signal.raise_signal(signal.SIGINT)


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator like `torch.no_grad()`, which a SIGINT at the wrong moment would leave on for ever."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with uninterruptible(torch.no_grad()):
            return function(*args, **kwargs)

    return call
