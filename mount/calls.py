"""The calls that the kernel waits for: what each has begun, so that it is not done twice if its worker dies.

The kernel hands out a call that was not answered once more, to the next worker, under the same unique
number. A binding says ``begin`` and ``end`` around each call, in the thread that carries it out, and ``end``
only when the kernel has the answer. In between:

* The number of the request that changes the directory is written down before it is sent. The next worker
  uses that very number for that call, and the directory answers what it answered the first time
  (servers.replies). Until the end of the call no other request acknowledges the number.
* The fresh inode number of a creation goes with it: the lock of that inode is kept.
* The place of an append is written down before the local copy is changed. The next worker writes there
  again.

A call makes at most one change of the directory that succeeds and cannot be repeated as it is; opening for
writing and commits can be.
"""

import threading
from collections.abc import Callable

import msgspec

from clients.session import Numbering
from mount.slate import Call, Slate
from wire.messages.directory import Create, CreateNameless, Op, OpenWrite


class _Current(threading.local):
    """The call of this thread. ``earlier``: what an earlier worker has begun and is not taken up yet."""

    unique = 0
    slot: int | None = None
    record = Call(0)
    earlier: Call | None = None


class Calls:
    """Those of one worker, and those that earlier ones have left. ``on_end`` is told of request numbers that
    may be acknowledged from now on."""

    def __init__(self, slate: Slate) -> None:
        self._table = slate.calls
        self._left = {call.unique: (slot, call) for slot, call in self._table.items()}
        self._current = _Current()
        self.note_all = False
        """Also calls that begin nothing which must be known: a kernel that cannot repeat them must be told
        that they have failed."""
        self.on_end: Callable[[int], None] = lambda _number: None

    # For the binding

    def begin(self, unique: int) -> None:
        """This thread carries out the call ``unique`` (without the kernel's mark of a repetition)."""
        current = self._current
        current.unique, current.slot, current.earlier = unique, None, None
        if self._left and unique in self._left:
            current.slot, current.record = self._left.pop(unique)
            current.earlier = current.record
        elif self.note_all:
            self._note()

    def end(self) -> None:
        """The kernel has the answer, or does not want one."""
        current = self._current
        if current.slot is not None:
            self._table.free(current.slot)
            if current.record.request:
                self.on_end(current.record.request)
        current.unique, current.slot = 0, None

    def left(self) -> list[Call]:
        """What earlier workers have begun and no ``begin`` has taken up."""
        return [call for _, call in list(self._left.values())]

    def forget_left(self) -> list[int]:
        """What nobody has taken up will not be: returns the inode numbers that were to be used."""
        inos = []
        for unique in list(self._left):
            if found := self._left.pop(unique, None):
                slot, call = found
                self._table.free(slot)
                self.on_end(call.request)
                inos += [call.ino] if call.ino else []
        return inos

    def requests(self) -> list[int]:
        """The numbers of requests that may be sent again."""
        return [call.request for call in self.left() if call.request]

    # For what a call does

    @property
    def unique(self) -> int:
        """Which call this thread carries out, 0 for none."""
        return self._current.unique

    def place(self, end: int) -> int:
        """Where this call appends: at ``end``, unless it has begun to elsewhere."""
        current = self._current
        if not current.unique:
            return end
        if current.earlier is not None and current.earlier.offset >= 0:
            return current.earlier.offset
        self._note(offset=end)
        return end

    def fresh_ino(self) -> int:
        """The inode number under which this call has begun to create a file, 0 if it has not."""
        earlier = self._current.earlier
        return earlier.ino if earlier is not None else 0

    def forget_ino(self) -> None:
        """The creation has failed, and its inode number may be used by another call."""
        if self._current.slot is not None:
            self._note(ino=0)

    def closing(self, number: int) -> None:
        """This call closes a handle. A call that comes once more closes it then, or finds it closed."""
        if self.note_all and self._current.unique:
            self._note(closes=number)

    def numbering(self, op: Op) -> Numbering | None:
        """What decides under which number ``op`` is sent, given a fresh one; None if that may be any."""
        if not self._current.unique or isinstance(op, OpenWrite):
            return None
        kind, ino = type(op).__name__, op.ino if isinstance(op, Create | CreateNameless) else 0
        return lambda fresh: self._number(kind, ino, fresh)

    def _number(self, kind: str, ino: int, fresh: int) -> int:
        current = self._current
        earlier, current.earlier = current.earlier, None
        if earlier is not None and earlier.kind == kind:
            return earlier.request
        before = current.record.request if current.slot is not None else 0
        self._note(kind=kind, ino=ino, request=fresh)
        if before:
            self.on_end(before)
        return fresh

    def _note(self, **what: str | int) -> None:
        current = self._current
        if current.slot is None:
            current.record = Call(current.unique)  # what the thread's last call has left is not this one's
        current.record = msgspec.structs.replace(current.record, **what)
        if current.slot is None:
            current.slot = self._table.take(current.record)
        else:
            self._table.put(current.slot, current.record)
