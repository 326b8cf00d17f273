"""The kernel's end of a mount."""

from collections.abc import Iterator

import pytest

from mount.bindings.native.protocol import Opcode
from mount.resting import CACHE_SHARE
from tests.support.kernel import Kernel
from tests.support.resting import NAME, make
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def kernel(shared_stack: Stack) -> Iterator[Kernel]:
    """One that has mounted a realm."""
    found = Kernel(shared_stack)
    yield found
    found.close()


@pytest.fixture(scope="module")
def leased(shared_stack: Stack) -> Iterator[Kernel]:
    """One that has mounted a realm under a lease."""
    found = Kernel(shared_stack, promised=True)
    yield found
    found.close()


@pytest.fixture
def ino(leased: Kernel) -> Iterator[int]:
    """A file in the root, of which nothing rests; nor does anything afterwards."""
    yield make(leased, NAME, b"content")
    leased.ask(Opcode.UNLINK, NAME + b"\0")
    before_any = leased.client.copies.limit_bytes // CACHE_SHARE
    leased.the.vfs.resting.end_all()
    assert (leased.the.vfs.handles(), leased.the.vfs.resting._bytes_left) == ([], before_any)
