"""Structs to bytes and back: MessagePack, validated on decoding."""

import threading
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec

from wire.errors import BadMessage

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_building = threading.Lock()
"""When two threads build decoders of the same structs, msgspec 0.22 lets one use what the other has half
made, and the process dies."""


@cache
def _decoder(kind: Hashable) -> msgspec.msgpack.Decoder[Any]:
    with _building:
        return msgspec.msgpack.Decoder(cast(Any, kind))


def encode(message: msgspec.Struct) -> bytes:
    """``message`` as MessagePack."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview, kind: type[T]) -> T:
    """The message in ``data``. Raises BadMessage with a sentence that names the field that does not fit."""
    try:
        message: T = _decoder(cast(Hashable, kind)).decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not a {kind.__name__}: {error}") from error
    return message
