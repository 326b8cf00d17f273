"""What the kernel knows, and what it believes: one record for each inode that it has heard of.

A record goes when the kernel forgets the inode, so the kernel's memory bounds ours. One that is missing
(another process has served this mount before) is no error: then nothing is known, and nothing relied on.

**Names.** A record has the name under which its inode was last told to the kernel, or made or moved by it.
OPEN brings an inode only; the names up to the root are the path that is then walked at the directory. As long
as the kernel may believe another name too (the file was renamed elsewhere), OPEN does not say which one was
used: the first attempt is answered with ESTALE, and at the second one the kernel has just asked for the name.

**Pages.** ``pages`` says of which version the kernel's pages of a file are, but for what programs here have
written since. It holds as long as ``Node.moves`` is what it was when it was said: from the next number on,
reads may have brought content of another version. A page that is being read is in the kernel's cache, and
locked, before its request is sent. So dropping all pages, *after* the version was looked at and *before* the
open is answered, waits for every read that may still be answered with something older; and whatever is read
later is of this version, or ``moves`` has changed. Two opens at once may both drop; each says what it dropped
for, if the node is still there. A commit makes the pages ones of the new version, if they were of the node's
content before. A discard (a lost lock, a conflict) is a move. Once the last handle is closed nothing is read:
what was said stays true, whatever node comes next, unless something is uncommitted even then: that may be
discarded later.
"""

import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from mount import memory
from mount.bindings.native.notifications import ALL, NONE
from mount.nodes import Node
from wire.limits import OPS_MAX
from wire.messages.directory import ROOT_INO

NAME_SECONDS = 1.0
"""How long the kernel may believe a name."""

RETRIES_MAX = 1000
"""Threads of programs that are remembered to be opening again."""

ROOM_MAX = 4
"""A dict keeps the room that it once needed; it is made anew when it has this many times what it needs."""

MANY = 50_000
"""So many records are some 20 MB: when most of them have gone, ``on_much_less`` is called."""

MOVES_CLOSED = 0
"""In place of a node's ``moves``: no file of the inode is open."""


class Folder(msgspec.Struct, gc=False):
    """A directory, and the inodes of the names in it that are relied on."""

    ino: int
    inos: dict[bytes, int]


class Record(msgspec.Struct, gc=False):
    """An inode as the kernel knows it. ``pages`` and ``told`` are versions, 0 for unknown: of the pages, and
    of the attributes that were told last. Until ``believed_until`` (monotonic) the kernel may believe the
    name (``folder`` is None: no name is known), until ``others_until`` other ones.

    There may be a million of them: they share what they can, and the garbage collector does not look at
    them. They hold a folder, which holds no record."""

    lookups: int = 0
    folder: Folder | None = None
    name: bytes = b""
    believed_until: float = 0.0
    others_until: float = 0.0
    open: int = 0
    pages: int = 0
    moves: int = MOVES_CLOSED
    told: int = 0


class Inodes:
    """The records of a mount; thread-safe."""

    def __init__(self, on_much_less: Callable[[], None] = memory.give_back) -> None:
        self._on_much_less = on_much_less
        self._guard = threading.Lock()
        self._records: dict[int, Record] = {}
        self._folders: dict[int, Folder] = {}  # those with names
        self._room = 0  # how many records there have been since ``_records`` was made
        self._retries: dict[int, int] = {}  # by thread: what it has looked up since it was told ESTALE

    def __len__(self) -> int:
        return len(self._records)

    # What is told to the kernel, and what it forgets

    def looked_up(
        self, ino: int, parent: int, name: bytes, version: int, *, seconds: float = NAME_SECONDS, pid: int = 0
    ) -> None:
        """The kernel is told of an inode by a name, to be believed for some seconds, with attributes of
        ``version``: it will forget one lookup more. ``pid`` is the thread that has asked for the name."""
        now = time.monotonic()
        with self._guard:
            record = self._record(ino)
            record.lookups += 1
            record.told = version
            if record.folder is not None and (record.folder.ino, record.name) != (parent, name):
                record.others_until = max(record.others_until, record.believed_until)
            record.believed_until = now + seconds
            self._set_name(ino, record, (parent, name))
            if pid in self._retries:
                self._retries[pid] = ino

    def made_nameless(self, ino: int, version: int) -> None:
        """As ``looked_up``, of a file that has no name."""
        with self._guard:
            record = self._record(ino)
            record.lookups += 1
            record.told = version

    def told(self, ino: int, version: int) -> None:
        """The kernel is told attributes of ``version``."""
        with self._guard:
            self._record(ino).told = version

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> tuple[list[int], list[tuple[int, bytes]]]:
        """The kernel takes back lookups: (inode, how many). Returns the inodes that it does not know any
        more, and the names that they had."""
        inos, names = [], []
        with self._guard:
            self._room = max(self._room, len(self._records))
            for ino, count in forgotten:
                record = self._records.get(ino)
                if record is None:
                    continue
                record.lookups -= count
                if record.lookups <= 0:
                    inos.append(ino)
                    if record.folder is not None:
                        names.append((record.folder.ino, record.name))
                    self._set_name(ino, record, None)
                    del self._records[ino]
            is_much_less = self._shrink()
        if is_much_less:
            self._on_much_less()
        return inos, names

    def _shrink(self) -> bool:
        """Under guard: lets go of room that is not needed any more; returns whether that is much."""
        was, left = self._room, len(self._records)
        if left >= was // ROOM_MAX:
            return False
        self._records, self._room = dict(self._records), left
        return was >= MANY

    def knows(self, ino: int) -> bool:
        """Whether the kernel was told of the inode, and has not forgotten it."""
        with self._guard:
            return ino in self._records

    def known(self) -> list[int]:
        """All inodes that the kernel has heard of from this process."""
        with self._guard:
            return list(self._records)

    # Names

    def path(self, ino: int, steps: int = OPS_MAX) -> tuple[int, list[bytes]]:
        """The known path of an inode, its last ``steps`` names at most: from which inode it starts (as a rule
        the root; else one whose name is not known), and the names from there."""
        names: list[bytes] = []
        with self._guard:
            while ino != ROOT_INO and len(names) < steps:
                record = self._records.get(ino)
                if record is None or record.folder is None:
                    break
                ino = record.folder.ino
                names.append(record.name)
        return ino, names[::-1]

    def path_to_open(self, ino: int, pid: int) -> tuple[int, list[bytes]] | None:
        """As ``path``; None if it is not clear by which name the thread ``pid`` has come here: ``stale``."""
        with self._guard:
            record = self._records.get(ino)
            is_clear = record is None or time.monotonic() >= record.others_until
            looked_up = self._retries.pop(pid, None)
        if is_clear or looked_up == ino:
            return self.path(ino)
        # A second attempt that has looked nothing up came without a name (/proc/PID/fd).
        return None if looked_up is None else (ino, [])

    def stale(self, ino: int, pid: int) -> None:
        """The thread is told ESTALE: the known path was wrong somewhere, or not the only one. None of its
        names is relied on any more; the kernel walks again, and asks for all of them."""
        with self._guard:
            self._retries[pid] = 0
            if len(self._retries) > RETRIES_MAX:
                self._retries.pop(next(iter(self._retries)))
            while True:
                record = self._records.get(ino)
                if record is None or record.folder is None:
                    return
                parent = record.folder.ino
                self._set_name(ino, record, None)
                ino = parent

    def removed(self, parent: int, name: bytes) -> None:
        """Nothing has this name any more."""
        with self._guard:
            self._unname((parent, name))

    def renamed(self, old: tuple[int, bytes], new: tuple[int, bytes], *, exchanged: bool) -> None:
        """What was ``old`` is ``new`` now; and the other way round, or the former is gone."""
        with self._guard:
            moved, replaced = self._unname(old), self._unname(new)
            if moved:
                self._set_name(moved, self._record(moved), new)
            if exchanged and replaced:
                self._set_name(replaced, self._record(replaced), old)

    def _record(self, ino: int) -> Record:
        record = self._records.get(ino)
        if record is None:
            record = self._records[ino] = Record()
        return record

    def _set_name(self, ino: int, record: Record, name: tuple[int, bytes] | None) -> None:
        """Under guard. A name belongs to one inode: whoever had it before has none now."""
        folder = record.folder
        if folder is not None:
            if name == (folder.ino, record.name):
                return
            self._unname((folder.ino, record.name))
        if name is not None:
            self._unname(name)
            parent, record.name = name
            record.folder = self._folders.get(parent)
            if record.folder is None:
                record.folder = self._folders[parent] = Folder(parent, {})
            record.folder.inos[record.name] = ino

    def _unname(self, name: tuple[int, bytes]) -> int:
        """Under guard: who had the name, 0 for nobody."""
        folder = self._folders.get(name[0])
        ino = folder.inos.pop(name[1], 0) if folder is not None else 0
        if folder is not None and ino:
            record = self._records[ino]
            record.folder, record.name = None, b""
            if not folder.inos:
                del self._folders[folder.ino]
        return ino

    # Pages

    def opened(self, node: Node, drop: Callable[[int, int], bool]) -> bool:
        """A file has been opened, and is to be answered; returns whether the kernel may keep its pages.

        ``drop`` is ``Notifications.drop``: the attributes go if they are not of the version that was opened,
        and so do the pages. Call ``closed`` for each.
        """
        with self._guard:
            record = self._record(node.ino)
            is_first = record.open == 0
            record.open += 1
        return self._see(node, drop, is_first)

    def validated(self, node: Node, drop: Callable[[int, int], bool]) -> None:
        """As ``opened``, for a file that is open already and may have moved on."""
        self._see(node, drop, is_first=False)

    def _see(self, node: Node, drop: Callable[[int, int], bool], is_first: bool) -> bool:
        version, moves = node.shown
        with self._guard:
            record = self._record(node.ino)
            keep = record.pages == version and (is_first or record.moves == moves)
            if keep:
                record.moves = moves
            else:
                record.pages = 0
            if keep and record.told == version:
                return True
        done = drop(node.ino, NONE if keep else ALL)
        with self._guard:
            if done:
                record.told = version
                if not keep and node.moves == moves:
                    record.pages, record.moves = version, moves
        return done

    def restored(self, ino: int) -> None:
        """A file is open that an earlier worker has opened; of its pages nothing is known."""
        with self._guard:
            self._record(ino).open += 1

    def rests(self, ino: int) -> None:
        """The kernel has let go of an open file that may be opened again as it is (mount.resting): what is
        said of the pages stays true of its node."""
        with self._guard:
            record = self._records.get(ino)
            if record is not None:
                record.open = max(0, record.open - 1)

    def wakes(self, node: Node) -> bool:
        """As ``opened``, of a file that rests. False, and it is not opened, if there is anything to drop."""
        version, moves = node.shown
        with self._guard:
            record = self._records.get(node.ino)
            if record is None or record.moves != moves or not record.pages == version == record.told:
                return False
            record.open += 1
            return True

    def is_open(self, ino: int) -> bool:
        """Whether any file of the inode is open, or mapped still."""
        with self._guard:
            record = self._records.get(ino)
            return record is not None and record.open > 0

    def committed(self, node: Node) -> None:
        """What was written to a file here may have become a version."""
        version, moves = node.shown
        with self._guard:
            record = self._records.get(node.ino)
            if record is not None and record.pages and record.moves == moves:
                record.pages = version

    def doubted(self, ino: int) -> None:
        """The pages may have what is no version."""
        with self._guard:
            record = self._records.get(ino)
            if record is not None:
                record.pages = 0

    def closed(self, node: Node) -> None:
        """A file is closed: nothing more will be read through it."""
        version, moves = node.shown
        with self._guard:
            record = self._records.get(node.ino)
            if record is None:
                return
            record.open = max(0, record.open - 1)
            is_of_version = record.moves == moves and not (record.open == 0 and node.is_ours)
            record.pages = version if record.pages and is_of_version else 0
