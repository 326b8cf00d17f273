"""What must survive a worker and is on no disk: a piece of memory that the mount's keeper holds for it.

A worker that is killed leaves no time for anything, so all of this is written down as it happens, and fits
together whatever instruction was the last one:

* A record has a slot with room for two copies, and one byte that says which of them counts (0: none). The
  other copy is written whole, then the byte. A write of one byte is done or not.
* What is changed in several slots is in an order in which each step may be the last one.

The memory is a file without a name (memfd_create(2)): it takes room only where something was written. It is
of this machine's boot and of this user's processes alone: keys stand in it as they do in any process.

One worker at a time has a ``Slate``. Each counts as one *generation*, and numbers that must never be used
twice (of handles, of requests) begin anew with each, above all that earlier ones can have used.
"""

import errno
import itertools
import mmap
import os
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from wire.errors import fail
from wire.messages.auth import Realm, Session
from wire.messages.common import Caller
from wire.messages.lock import Range

T = TypeVar("T", bound=msgspec.Struct)

LAYOUT = 2
"""Raised with every change of what is below: a worker takes over only from one that wrote as it reads."""

HANDLES_MAX = 65536
CALLS_MAX = 1024
"""More than a binding has threads."""

PROGRAM_LOCKS_MAX = 32768

NUMBERS_A_GENERATION = 2**40

_LENGTH_BYTES = 2
_HEAD_BYTES = mmap.PAGESIZE


class OpenFile(msgspec.Struct, frozen=True, array_like=True):
    """A handle. ``opened_by`` is the unique number of the call that opened it (0: none of the kernel's);
    ``token`` of the write lock, and ``version``, as they were then. ``outrun``: somebody else has written
    since, so nothing may be written through it any more. ``served``: how the kernel serves it (the binding's
    word), from which ``backing`` file, with which ``file_number`` of its own; ``is_aside``: the kernel has
    closed it, but a map may be left. ``is_shared``: programs lock the file for themselves."""

    number: int
    ino: int
    flags: int
    caller: Caller | None
    is_writer: bool
    opened_by: int
    token: int = 0
    version: int = 0
    outrun: bool = False
    served: int = 0
    backing: int = 0
    file_number: int = 0
    is_aside: bool = False
    is_shared: bool = False


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What a call that the kernel waits for has begun: the ``request`` number of its change of the directory
    and which ``kind`` that is; the fresh inode number of a creation; the ``offset`` of an append; the handle
    that it ``closes``."""

    unique: int
    kind: str = ""
    request: int = 0
    ino: int = 0
    offset: int = -1
    closes: int = 0


class Attributes(msgspec.Struct, frozen=True, array_like=True):
    """What programs have set of an inode and no commit has made true yet."""

    ino: int
    mode: int | None
    atime: int | None
    mtime: int | None


class ProgramLock(msgspec.Struct, frozen=True, array_like=True):
    """What a program has locked of an inode, through the open file ``handle``."""

    ino: int
    handle: int
    range: Range


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """The session. ``received`` in seconds of time.monotonic, which all processes of a boot share."""

    realm: Realm
    session: Session
    received: float


class _Single(msgspec.Struct, frozen=True, array_like=True):
    value: bytes


class Table(Generic[T]):
    """``count`` slots of records of one type. Thread-safe, as long as a slot is its taker's alone."""

    def __init__(self, memory: mmap.mmap, first: int, count: int, copy_bytes: int, record: type[T]) -> None:
        self._memory = memory
        self._states = first
        self._copies = first + count
        self._copy_bytes = copy_bytes
        self._count = count
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(record).decode
        taken = [slot for slot, state in enumerate(memory[first : first + count]) if state]
        never_used = taken[-1] + 1 if taken else 0
        self._given_back = sorted(set(range(never_used)) - set(taken), reverse=True)
        self._never_used = itertools.count(never_used)

    @staticmethod
    def size_bytes(count: int, copy_bytes: int) -> int:
        """The memory that it takes."""
        return count + 2 * count * copy_bytes

    def items(self) -> Iterator[tuple[int, T]]:
        """The slots that are taken, and their records."""
        for slot, state in enumerate(self._memory[self._states : self._copies]):
            if state:
                at = self._at(slot, state)
                length = int.from_bytes(self._memory[at : at + _LENGTH_BYTES], "little")
                yield slot, self._decode(self._memory[at + _LENGTH_BYTES : at + _LENGTH_BYTES + length])

    def take(self, record: T) -> int:
        """Writes a record into a free slot. Raises ENFILE if there is none."""
        try:
            slot = self._given_back.pop()
        except IndexError:
            slot = next(self._never_used)
            if slot >= self._count:
                raise fail(errno.ENFILE, f"a mount remembers no more than {self._count} of these") from None
        self.put(slot, record)
        return slot

    def put(self, slot: int, record: T) -> None:
        """In place of what is in the slot. Raises EFBIG."""
        data = self._encode(record)
        if _LENGTH_BYTES + len(data) > self._copy_bytes:
            raise fail(errno.EFBIG, f"a record of {len(data)} bytes")
        state = 2 if self._memory[self._states + slot] == 1 else 1
        at = self._at(slot, state)
        self._memory[at : at + _LENGTH_BYTES + len(data)] = len(data).to_bytes(_LENGTH_BYTES, "little") + data
        self._memory[self._states + slot] = state  # from here on it counts

    def free(self, slot: int) -> None:
        """Forgets the record; the slot may be taken again."""
        self._memory[self._states + slot] = 0
        self._given_back.append(slot)

    def hide(self, slot: int) -> None:
        """Forgets the record as ``free`` does, but the slot stays taken: ``put`` writes into it again."""
        self._memory[self._states + slot] = 0

    def _at(self, slot: int, state: int) -> int:
        return self._copies + (2 * slot + state - 1) * self._copy_bytes


_SINGLES, _SINGLE_BYTES = 3, 65536
_GENERATION, _SESSION, _INIT = range(_SINGLES)
_HANDLE_BYTES = 2048
_CALL_BYTES = 128
_ATTRIBUTES_BYTES = 64
_LOCK_BYTES = 96
_SIZES = (
    (_SINGLES, _SINGLE_BYTES),
    (HANDLES_MAX, _HANDLE_BYTES),
    (CALLS_MAX, _CALL_BYTES),
    (HANDLES_MAX, _ATTRIBUTES_BYTES),
    (PROGRAM_LOCKS_MAX, _LOCK_BYTES),
)
_STARTS = tuple(itertools.accumulate((Table.size_bytes(*size) for size in _SIZES), initial=_HEAD_BYTES))


def new_memory() -> int:
    """A descriptor of memory on which nothing is written yet."""
    descriptor = os.memfd_create("dfs-slate")
    os.ftruncate(descriptor, _STARTS[-1])
    return descriptor


class Slate:
    """A worker's view of ``memory``, which stays the caller's to close; by default of memory of its own,
    which goes with it. Raises EPROTO if it was written by a version of DFS that writes otherwise."""

    def __init__(self, memory: int | None = None) -> None:
        descriptor = new_memory() if memory is None else memory
        try:
            if os.fstat(descriptor).st_size != _STARTS[-1]:
                raise fail(errno.EPROTO, "the mount's memory is of another version of DFS")
            self._memory = mmap.mmap(descriptor, _STARTS[-1])
        finally:
            if memory is None:
                os.close(descriptor)
        if self._memory[0] not in (0, LAYOUT):
            raise fail(errno.EPROTO, "the mount's memory is of another version of DFS")
        self._memory[0] = LAYOUT
        tables = [(self._memory, start, *size) for start, size in zip(_STARTS, _SIZES, strict=False)]
        self._singles = Table(*tables[0], _Single)
        self.handles = Table(*tables[1], OpenFile)
        self.calls = Table(*tables[2], Call)
        self.attributes = Table(*tables[3], Attributes)
        self.program_locks = Table(*tables[4], ProgramLock)
        self.generation = int.from_bytes(self._single(_GENERATION) or b"", "little")
        """How many workers were there before this one."""
        self._singles.put(_GENERATION, _Single((self.generation + 1).to_bytes(8, "little")))

    @property
    def first_number(self) -> int:
        """Above all numbers that earlier workers can have used."""
        return self.generation * NUMBERS_A_GENERATION + 1

    @property
    def session(self) -> Kept | None:
        """The session, if an earlier worker had one."""
        data = self._single(_SESSION)
        return None if data is None else msgspec.msgpack.decode(data, type=Kept)

    def keep_session(self, realm: Realm, session: Session, received: float) -> Kept:
        """Each time it is new or renewed."""
        kept = Kept(realm, session, received)
        self._singles.put(_SESSION, _Single(msgspec.msgpack.encode(kept)))
        return kept

    @property
    def init_answer(self) -> bytes | None:
        """What the kernel was answered when the mount began, if it was."""
        return self._single(_INIT)

    def keep_init_answer(self, data: bytes) -> None:
        """Before the kernel is answered: later workers are not asked."""
        self._singles.put(_INIT, _Single(data))

    def open_inos(self) -> set[int]:
        """The inodes that have handles."""
        return {file.ino for _, file in self.handles.items()}

    def _single(self, slot: int) -> bytes | None:
        return next((single.value for found, single in self._singles.items() if found == slot), None)
