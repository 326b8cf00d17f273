"""Open directories: the directory's listing, cut into what the kernel's buffers hold.

An offset is the place of the *next* entry in the listing that the handle has begun: "." and ".." have 0
and 1. A kernel that reads on gets the next ones; one that goes elsewhere gets a new listing, from that place
on.
"""

import errno
import itertools
import stat
import threading
from collections.abc import Iterator
from typing import NamedTuple

from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.protocol import Opcode
from mount.bindings.native.requests import DONE, Answer, Methods, Request
from mount.vfs import Vfs
from wire.errors import fail
from wire.messages.common import Caller
from wire.messages.directory import Attr
from wire.permissions import READ

NO_ENTRY = bytes(protocol.ENTRY_OUT.size + protocol.ATTR.size)
"""nodeid 0: the kernel is told a name and no more."""


class _Entry(NamedTuple):
    name: bytes
    ino: int
    mode: int
    attr: Attr | None


class _Open:
    """An open directory."""

    def __init__(self, vfs: Vfs, ino: int, parent: int, who: Caller | None) -> None:
        self.guard = threading.Lock()
        self.ino = ino
        self._vfs = vfs
        self._parent = parent
        self._who = who
        self._entries: Iterator[_Entry] = iter(())
        self._kept: _Entry | None = None
        self._place = -1

    def go_to(self, place: int) -> None:
        """Under guard: the next entry is the one at this place."""
        if place and place == self._place:
            return
        self._entries, self._kept, self._place = self._begin(), None, place
        for _ in itertools.islice(self._entries, place):
            pass

    def _begin(self) -> Iterator[_Entry]:
        yield _Entry(b".", self.ino, stat.S_IFDIR, None)
        yield _Entry(b"..", self._parent, stat.S_IFDIR, None)
        for entry in self._vfs.readdir(self.ino, self._who):
            attr = entry.attr
            yield _Entry(entry.name, attr.ino, attr.mode, attr if attr.change else None)

    def next(self) -> tuple[int, _Entry] | None:
        """Under guard: the next entry and the offset after it; None at the end."""
        entry, self._kept = self._kept or next(self._entries, None), None
        if entry is None:
            return None
        self._place += 1
        return self._place, entry

    def keep(self, entry: _Entry) -> None:
        """Under guard: this one is the next again. What is known of it now may be of the past by then."""
        self._kept = entry._replace(attr=None)
        self._place -= 1


class Directories:
    """One method an opcode, as ``methods`` says."""

    def __init__(self, the: Context) -> None:
        self._the = the
        self._open: dict[int, _Open] = {}
        self._numbers = itertools.count(the.vfs.first_number)
        self.methods: Methods = {
            Opcode.OPENDIR: self.open,
            Opcode.READDIR: self.read,
            Opcode.READDIRPLUS: self.read,
            Opcode.RELEASEDIR: self.close,
            Opcode.FSYNCDIR: self.sync,
        }

    def open(self, request: Request) -> Answer:
        """opendir(3), of the directory as it is now: EACCES, and ESTALE if it is gone."""
        the, ino, who = self._the, request.nodeid, self._the.who(request)
        the.vfs.fresh_attr(ino, who)
        the.vfs.access(ino, READ, who)
        number = next(self._numbers)
        self._begin(request, number)
        return protocol.OPEN_OUT.pack(number, 0, 0)

    def _begin(self, request: Request, number: int) -> _Open:
        the = self._the
        parent, _ = the.inodes.path(request.nodeid, steps=1)
        listing = self._open[number] = _Open(the.vfs, request.nodeid, parent, the.who(request))
        return listing

    def close(self, request: Request) -> Answer:
        """closedir(3)."""
        self._open.pop(protocol.RELEASE_IN.read(request.body).fh, None)
        return DONE

    def sync(self, request: Request) -> Answer:
        """fsync(2): a change of a name is durable when it is answered."""
        return DONE

    def read(self, request: Request) -> Answer:
        """As many entries from the offset on as fit; none at the end."""
        asked = protocol.READ_IN.read(request.body)
        listing = self._open.get(asked.fh)
        if asked.offset > protocol.OFFSET_MAX:
            raise fail(errno.EINVAL)
        if listing is None:  # opened at an earlier worker: the listing begins anew, and goes to the offset
            listing = self._begin(request, asked.fh)
        is_plus = request.opcode == Opcode.READDIRPLUS
        head = len(NO_ENTRY) if is_plus else 0
        told: list[tuple[_Entry, bytes]] = []
        left = asked.size
        with listing.guard:
            listing.go_to(asked.offset)
            while found := listing.next():
                place, entry = found
                dirent = _dirent(place, entry)
                left -= head + len(dirent)
                if left < 0:
                    listing.keep(entry)
                    break
                told.append((entry, dirent))
        # Not before: of an answer that fails nothing is forgotten later.
        return b"".join(
            (self._entry(listing.ino, entry) if is_plus else b"") + dirent for entry, dirent in told
        )

    def _entry(self, folder: int, entry: _Entry) -> bytes:
        return NO_ENTRY if entry.attr is None else self._the.listed(folder, entry.name, entry.attr)


def _dirent(place: int, entry: _Entry) -> bytes:
    kind = stat.S_IFMT(entry.mode) >> 12
    head = protocol.DIRENT.pack(entry.ino, place, len(entry.name), kind)
    return head + entry.name + bytes(-len(entry.name) % 8)
