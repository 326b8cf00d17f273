"""Calls whose program does not want to wait any longer: it is being killed, or has got a signal.

A binding puts ``Call(unique)`` around each request, in the thread that carries it out, and ``interrupt``
marks it when the kernel says so. Only waiting for a lock ends then, with EINTR. What was sent to a service
is carried out and answered: an interrupted change would be one of which nobody knows whether it was made.

The kernel may be early (the request's thread has not got here yet) or late (it is answered). Nothing is
remembered of such an interruption: the binding answers EAGAIN, and the kernel sends it again for as
long as the request is unanswered. So every request that is read must get here or be answered soon. Numbers
are never used again, so an interruption cannot meet another request than its own.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mount import turns
from wire.errors import fail


class Call:
    """What this thread does in the block is the kernel's request ``unique``. Cheap: it takes no lock."""

    __slots__ = ("_unique", "is_interrupted", "wake")

    def __init__(self, unique: int) -> None:
        self._unique = unique
        self.is_interrupted = False
        self.wake: Callable[[], None] | None = None  # under _guard; there while the call waits

    def __enter__(self) -> None:
        _thread.call = self
        _calls[self._unique] = self

    def __exit__(self, *_: object) -> None:
        _calls.pop(self._unique, None)
        _thread.call = None


class _Thread(threading.local):
    call: Call | None = None


_thread = _Thread()
_calls: dict[int, Call] = {}
_guard = threading.Lock()
"""Taken before all locks that a ``wake`` takes."""


def interrupt(unique: int) -> bool:
    """Ends the request's waiting, now and later. A second time it does nothing more. False: no such request
    is being carried out."""
    with _guard:
        found = _calls.get(unique)
        if found is None:
            return False
        found.is_interrupted = True
        if found.wake is not None:
            found.wake()
        return True


def is_interrupted() -> bool:
    """Whether this thread's request was interrupted."""
    return _thread.call is not None and _thread.call.is_interrupted


def check() -> None:
    """Raises InterruptedError if this thread's request was interrupted."""
    if is_interrupted():
        raise fail(errno.EINTR)


@contextmanager
def waking(wake: Callable[[], None]) -> Iterator[None]:
    """Around waiting: ``wake``, which must not wait itself, is called if this thread's request is interrupted
    meanwhile or was before. After the block it is not called any more. Not to be nested."""
    waiting = _thread.call
    if waiting is None:
        yield
        return
    turns.about_to_wait()
    with _guard:
        waiting.wake = wake
        if waiting.is_interrupted:
            wake()
    try:
        yield
    finally:
        with _guard:
            waiting.wake = None
