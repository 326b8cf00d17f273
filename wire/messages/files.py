"""Messages of the file servers.

``PUT /v1/chunks/{id}`` (files role) stores a chunk, ``GET /v1/chunks/{id}`` answers its bytes, bare.
``POST /v1/chunks/{id}/doubt`` (``Empty``, both ways) says that these did not fit the id: the server looks at
the chunk soon. The id stands in the URL as 96 hexadecimal digits. Chunks never change, so all of it may be
repeated.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.limits import CHUNK_BYTES
from wire.messages.common import Positive


class PutChunk(msgspec.Struct, frozen=True):
    """``data`` is refused with EBADMSG unless it fits the id. ``forward`` are the ids of the
    secondaries that this server shall pass it on to before it answers; the directory tells where they are."""

    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]
    forward: Annotated[list[Positive], Meta(max_length=8)] = []


class Stored(msgspec.Struct, frozen=True):
    """``servers`` have it on disk, this one first; ``receipt`` says so to the directory."""

    servers: list[int]
    receipt: bytes
