"""Field types that several services use."""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.chunking import CHUNK_ID_BYTES
from wire.limits import CALLER_GIDS_MAX, OPS_MAX

Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Id32 = Annotated[int, Meta(ge=0, le=2**32 - 2)]
"""A uid or gid; 2**32 - 1 means "leave alone" to chown(2) and never names anybody."""

Name = Annotated[bytes, Meta(min_length=1, max_length=4096)]
"""A name on the wire. The rule (wire.names) is stricter and answers with the errno that it knows."""

ChunkId = Annotated[bytes, Meta(min_length=CHUNK_ID_BYTES, max_length=CHUNK_ID_BYTES)]
CommitId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Sealed = Annotated[bytes, Meta(max_length=1024)]

Inos = Annotated[list[Positive], Meta(max_length=OPS_MAX)]


class Empty(msgspec.Struct, frozen=True):
    """Nothing to say."""


class Caller(msgspec.Struct, frozen=True):
    """For whom a trusted session acts. From any other session it is refused."""

    uid: Id32
    gids: Annotated[list[Id32], Meta(min_length=1, max_length=CALLER_GIDS_MAX)]


class ServerAddress(msgspec.Struct, frozen=True):
    """Where a file server is reached."""

    id: Positive
    url: str


class Health(msgspec.Struct, frozen=True):
    """The answer of ``GET /healthz``: JSON, not sealed."""

    service: str
    pid: int
    uptime_seconds: float
