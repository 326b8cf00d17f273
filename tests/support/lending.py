"""A local copy that is lent, and who borrows it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cache.copies import CopyStore, LocalCopy
from tests.support.copies import fetch
from wire.limits import CHUNK_BYTES

INO = 5


def filled(store: CopyStore) -> LocalCopy:
    """Version 7: a chunk of "a", a hole, and 10 bytes of "c". All of it is here."""
    copy = store.open(INO)
    fetch(copy, 7, {0: b"a" * CHUNK_BYTES, 2: b"c" * 10}, 2 * CHUNK_BYTES + 10)
    return copy


@contextmanager
def borrowed(copy: LocalCopy, flags: int = os.O_RDONLY) -> Iterator[int]:
    """As the kernel has the file of an open handle."""
    descriptor = copy.lend(flags)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
