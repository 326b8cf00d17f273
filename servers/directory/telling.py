"""What answers show is promised, and no change is answered before all who must know of it do."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from servers.directory.promises import Promises
from wire.messages.directory import Attr, Attrs, Listing, Mutated, Resolved

A = TypeVar("A", bound=msgspec.Struct)


def promise(promises: Promises, session: int, began: int, answer: A) -> A:
    """The answer to a read that began at ``began``; what could not be promised stands in it."""
    shown = _latest(_shown(answer))
    unpromised = promises.give(session, began, shown) if shown else []
    return msgspec.structs.replace(answer, unpromised=unpromised) if unpromised else answer


def shown_by(mutated: Mutated) -> dict[int, int]:
    """The inodes whose attributes are in the answer, as of their last change."""
    return _latest(attr for result in mutated.results for attr in (result.attr, *result.touched))


def _shown(answer: msgspec.Struct) -> Sequence[Attr | None]:
    match answer:
        case Resolved() | Attrs():
            return answer.attrs
        case Listing():
            return [answer.attr, *(entry.attr for entry in answer.entries)]
        case _:
            return ()


def _latest(attrs: Iterable[Attr | None]) -> dict[int, int]:
    """Without those whose attributes are hidden (see reads.list_entries)."""
    found: dict[int, int] = {}
    for attr in attrs:
        if attr is not None and attr.change > found.get(attr.ino, 0):
            found[attr.ino] = attr.change
    return found
