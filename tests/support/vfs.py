"""What the tests of the Vfs share: flags and sizes, watching its wire, losing its locks, cutting it off."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from clients.session import Answer, Wire
from tests.support.stack import Client, Stack
from wire.errors import fail
from wire.limits import CHUNK_BYTES

READ, WRITE, BOTH, MAKE = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT
BORDER = CHUNK_BYTES
GONE_SECONDS = 0.3
BASE = b"what both of them began with"


def raises(number: int) -> "pytest.RaisesExc[OSError]":
    """An OSError with this errno."""
    return pytest.raises(OSError, check=lambda error: error.errno == number)


class WatchedWire:
    """Calls ``before`` and ``after`` each request; what they raise takes its place."""

    def __init__(self) -> None:
        self._inner: Wire
        self.before: Callable[[str, str], None] = lambda method, url: None
        self.after: Callable[[str, str], None] = lambda method, url: None

    def wrap(self, inner: Wire) -> Wire:
        """Stands before ``inner`` from now on."""
        self._inner = inner
        return self

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        self.before(method, url)
        answer = self._inner.send(method, url, headers, body, silence_seconds)
        self.after(method, url)
        return answer


def lose_locks(stack: Stack, client: Client) -> None:
    """The leases of all end, and the client learns it."""
    stack.advance_locks()
    locks = client.proxy.write_locks
    locks._forget([locks._held[client.walk("/file").ino]])


@contextmanager
def cut_at(stack: Stack, client: Client, path: str, *, before: bool = False) -> Iterator[None]:
    """In the block the client is cut off when a request with this end of its URL was carried out, and hears
    nothing of it; or ``before`` it is sent."""

    def cut(url: str, _headers: Mapping[str, str]) -> None:
        if url.endswith(path):
            client.cut()
            if before:
                raise fail(errno.ENETDOWN)

    hooks = stack.wire.before if before else stack.wire.after
    hooks.append(cut)
    yield
    hooks.remove(cut)
