"""Open directories: a directory's stream, cut into what the kernel's buffers hold.

An offset is what comes after it: 1 and 2 are after "." and "..", all others are cookies of entries (clock
values, so far above). They mean the same as long as the directory is there, also at the next worker: a kernel
that goes elsewhere, or on with an offset out of its own cache, gets what comes after that entry.
"""

import errno
import itertools
import stat
import threading
from typing import NamedTuple

from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.listings import FILLS, KEEPS
from mount.bindings.native.protocol import Opcode
from mount.bindings.native.requests import DONE, Answer, Methods, MethodsAtOnce, Request
from mount.stream import Stream
from wire.errors import fail
from wire.messages.directory import Attr

NO_ENTRY = bytes(protocol.ENTRY_OUT.size + protocol.ATTR.size)
"""nodeid 0: the kernel is told a name and no more."""

DOTS = 2
"""Offsets up to here are of "." and ".."."""


class _Entry(NamedTuple):
    name: bytes
    ino: int
    mode: int
    offset: int
    attr: Attr | None


class _Kept(NamedTuple):
    """An open directory of which the kernel had the listing, as of ``change``. As a rule nobody asks for it
    here, and all that it takes to answer would be for nothing."""

    ino: int
    change: int
    flags: int


class _Open:
    """An open directory."""

    def __init__(self, stream: Stream, ino: int, parent: int) -> None:
        self.guard = threading.Lock()
        self.flags = 0
        self.stream = stream
        self.ino = ino
        self._dots = (
            _Entry(b".", ino, stat.S_IFDIR, 1, None),
            _Entry(b"..", parent, stat.S_IFDIR, DOTS, None),
        )
        self._at = 0

    @property
    def drops_cache(self) -> bool:
        """Whether it fills the kernel's cache, which was emptied when it was opened."""
        return self.flags == FILLS

    def go_to(self, offset: int) -> None:
        """Under guard: the next entry is the one after this offset; from 0 on, as the directory is now."""
        self._at = offset
        if offset:
            self.stream.go_to(0 if offset <= DOTS else offset)
        else:
            self.stream.rewind()

    def peek(self) -> _Entry | None:
        """Under guard: the next entry, None at the end."""
        if self._at < DOTS:
            return self._dots[self._at]
        entry = self.stream.peek()
        if entry is None:
            return None
        attr = entry.attr
        return _Entry(entry.name, attr.ino, attr.mode, entry.cookie, attr if attr.change else None)

    def advance(self) -> None:
        """Under guard: past what ``peek`` has shown."""
        if self._at < DOTS:
            self._at += 1
        else:
            self.stream.advance()


class Directories:
    """One method an opcode, as ``methods`` says."""

    def __init__(self, the: Context) -> None:
        self._the = the
        self._open: dict[int, _Open | _Kept] = {}
        self._numbers = itertools.count(the.vfs.first_number)
        self.methods: Methods = {
            Opcode.OPENDIR: self.open,
            Opcode.READDIR: self.read,
            Opcode.READDIRPLUS: self.read,
            Opcode.RELEASEDIR: self.close,
            Opcode.FSYNCDIR: self.sync,
        }
        self.at_once: MethodsAtOnce = {
            Opcode.OPENDIR: self.open_at_once,
            Opcode.RELEASEDIR: self.close_at_once,
        }

    def open_at_once(self, _unique: int, ino: int, body: memoryview) -> bytes | None:
        """As ``open``, if the kernel has the listing still and the session's own user may have it."""
        the = self._the
        label = the.listings.label(ino)
        if not label or the.is_trusted or not the.vfs.is_listing_of_now(ino, label, None):
            return None
        flags = the.listings.opened(ino, label)
        number = next(self._numbers)
        self._open[number] = _Kept(ino, label, flags)
        return protocol.OPEN_OUT.pack(number, flags, 0)

    def open(self, request: Request) -> Answer:
        """opendir(3), of the directory as it is now: EACCES, and ESTALE if it is gone."""
        the, ino, listing = self._the, request.nodeid, self._listing(request)
        label = the.listings.label(ino)
        if the.vfs.is_listing_of_now(ino, label, the.who(request)):
            listing.stream.begin_unchanged(label)
        else:
            listing.stream.begin(label)
        if the.may_keep_listings():
            listing.flags = the.listings.opened(ino, listing.stream.change)
        number = next(self._numbers)
        self._open[number] = listing
        return protocol.OPEN_OUT.pack(number, listing.flags, 0)

    def _listing(self, request: Request) -> _Open:
        the, ino = self._the, request.nodeid
        parent, _ = the.inodes.path(ino, steps=1)
        return _Open(the.vfs.stream(ino, the.who(request)), ino, parent)

    def close(self, request: Request) -> Answer:
        """closedir(3)."""
        return self.close_at_once(request.unique, request.nodeid, request.body)

    def close_at_once(self, _unique: int, _ino: int, body: memoryview) -> bytes:
        """closedir(3)."""
        listing = self._open.pop(protocol.RELEASE_IN.read(body).fh, None)
        if listing is not None and listing.flags:
            self._the.listings.closed(listing.ino)
        return DONE

    def sync(self, request: Request) -> Answer:
        """fsync(2): a change of a name is durable when it is answered."""
        return DONE

    def read(self, request: Request) -> Answer:
        """As many entries from the offset on as fit; none at the end."""
        asked = protocol.READ_IN.read(request.body)
        if asked.offset > protocol.OFFSET_MAX:
            raise fail(errno.EINVAL)
        listing = self._opened(request, asked.fh)
        if listing.drops_cache:
            self._the.listings.has_dropped(listing.ino)
        is_plus = request.opcode == Opcode.READDIRPLUS
        with listing.guard:
            listing.go_to(asked.offset)
            told = _what_fits(listing, asked.size, len(NO_ENTRY) if is_plus else 0)
        # Not before: of an answer that fails nothing is forgotten later.
        return b"".join(
            (self._entry(listing.ino, entry) if is_plus else b"") + dirent for entry, dirent in told
        )

    def _opened(self, request: Request, number: int) -> _Open:
        """The handle, from now on to be read."""
        found = self._open.get(number)
        if isinstance(found, _Open):
            return found
        listing = self._listing(request)
        if found is not None:  # the kernel has lost what it had
            listing.flags = found.flags
            listing.stream.begin_unchanged(found.change)
        else:  # it was opened at an earlier worker
            listing.flags = KEEPS  # or not: nothing may be concluded from it
            self._the.listings.met(listing.ino)
        self._open[number] = listing
        return listing

    def _entry(self, folder: int, entry: _Entry) -> bytes:
        return NO_ENTRY if entry.attr is None else self._the.listed(folder, entry.name, entry.attr)


def _what_fits(listing: _Open, size: int, head: int) -> list[tuple[_Entry, bytes]]:
    """Under guard: the next entries, and each as it is told; ``head`` bytes come before each."""
    told: list[tuple[_Entry, bytes]] = []
    while (entry := listing.peek()) is not None:
        dirent = _dirent(entry)
        size -= head + len(dirent)
        if size < 0:
            break
        listing.advance()
        told.append((entry, dirent))
    return told


def _dirent(entry: _Entry) -> bytes:
    kind = stat.S_IFMT(entry.mode) >> 12
    head = protocol.DIRENT.pack(entry.ino, entry.offset, len(entry.name), kind)
    return head + entry.name + bytes(-len(entry.name) % 8)
