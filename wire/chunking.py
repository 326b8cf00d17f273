"""How content is cut into chunks and how chunks are named.

A chunk id is 48 bytes: 16 random ones, so that nobody can guess it, and the BLAKE3-256 of the
chunk's bytes, so that everybody who has it can check what he was given.
"""

import os
from collections.abc import Iterator

from blake3 import blake3

from wire.limits import CHUNK_BYTES

CHUNK_ID_BYTES = 48


def new_chunk_id(data: bytes | memoryview) -> bytes:
    """An id for ``data``; a second call for the same data gives another one."""
    return os.urandom(16) + blake3(data).digest()


def fits(chunk_id: bytes, data: bytes | memoryview) -> bool:
    """Whether ``data`` is what ``chunk_id`` names."""
    return len(chunk_id) == CHUNK_ID_BYTES and blake3(data).digest() == chunk_id[16:]


def chunk_count(size: int) -> int:
    """How many chunks content of ``size`` bytes has, holes included."""
    return -(-size // CHUNK_BYTES)


def pieces(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The range cut at chunk borders: ``(chunk index, start within the chunk, length)`` each."""
    end = offset + size
    while offset < end:
        index, start = divmod(offset, CHUNK_BYTES)
        length = min(CHUNK_BYTES - start, end - offset)
        yield index, start, length
        offset += length
