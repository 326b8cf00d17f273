"""How files are opened, made and closed: by inode, or by a path that the directory walks in the same call."""

import errno
import os
import stat
from collections.abc import Callable, Sequence

from cache.copies import CopyStore
from mount.completing import Completer
from mount.conflicts import NO_NAME
from mount.locks import WriteLock
from mount.nodes import Handle, Node, Way
from mount.proxy import Proxy
from mount.resting import CACHE_SHARE, FILE_BYTES_MAX, Resting
from mount.writing import Writing
from wire.errors import fail
from wire.limits import RESOLVED_CHUNKS_MAX
from wire.messages.common import Caller
from wire.messages.directory import ROOT_INO, Attr, Create, CreateNameless, Manifest
from wire.names import check_name
from wire.permissions import READ, may

NOT_CREATED = frozenset(
    {
        errno.EEXIST,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
"""What says for sure that a creation has not taken place, and its inode number is free."""


WAYS_MAX = 10_000
"""Files of which it is remembered that they were opened for reading, and by whom."""

_MORE_THAN_READING = os.O_ACCMODE | os.O_TRUNC


class Opening(Writing):
    """Files that can be opened and closed. ``settle`` is called before an inode is opened: it sees to what an
    earlier mount has left dirty of it, says whether there was anything, and raises what stands in the way."""

    def __init__(
        self, proxy: Proxy, copies: CopyStore, lock_wait_seconds: float, settle: Callable[[int], bool]
    ) -> None:
        super().__init__(proxy, copies, lock_wait_seconds)
        self._settle = settle
        self._ways: dict[int, Way] = {}
        self._completer = Completer(self._table, self._reader, self._unpin, copies.limit_bytes)
        self.resting = Resting(
            self._table,
            copies.resting_max,  # each keeps a copy open, and its descriptor
            copies.limit_bytes // CACHE_SHARE,
            lambda handle: self.release(handle.number),
        )

    def open(
        self,
        ino: int,
        flags: int,
        who: Caller | None,
        *,
        attr: Attr | None = None,
        manifest: Manifest | None = None,
        origin: tuple[int, bytes] | None = None,
    ) -> Handle:
        """Opens a file. ``attr`` and ``manifest`` are what the directory has just told the caller; ``origin``
        (parent, name) is where a conflict copy would go.

        Raises Busy if another mount's writer is not done in time (EWOULDBLOCK with O_NONBLOCK).
        """
        if handle := self._table.opened_before():
            return self._opened_again(handle, flags)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if self._settle(ino):
            attr = None  # it was asked for before
        if attr is None:
            known = self._table.peek(ino)
            attr = known.attr if known is not None and known.is_ours else self.fresh_attr(ino, who)
        _check_openable(attr)
        node = self._begin(attr, flags, who, writes=writes)
        handle = self._add_handle(node, flags, who, is_writer=writes)
        try:
            if manifest is not None:
                self._reader.take(node, manifest, 0, RESOLVED_CHUNKS_MAX)
            if origin is not None and writes:
                node.copy.set_origin(*origin)
            if flags & os.O_TRUNC:  # with a handle: the next worker would find dirty content of nobody's
                self._truncate(node, 0)
        except BaseException:
            self.release(handle.number)
            raise
        return handle

    def _begin(self, attr: Attr, flags: int, who: Caller | None, *, writes: bool) -> Node:
        """Pins the node of a file that ``who`` may read, or write: then with its lock, and as one more
        writer."""
        node = self._table.pin(attr)
        try:
            if writes:
                self._begin_writing(node, flags, who)
            else:
                self._begin_reading(node, attr, who)
        except BaseException:
            self._unpin(node)
            raise
        return node

    def _opened_again(self, handle: Handle, flags: int) -> Handle:
        """The call that has opened it was not answered: it may not have come to cutting the file."""
        if flags & os.O_TRUNC:
            self._truncate(handle.node, 0)
        return handle

    def _add_handle(self, node: Node, flags: int, who: Caller | None, *, is_writer: bool) -> Handle:
        """For a node that is pinned, and has one more writer if ``is_writer``; if it fails, no longer."""
        try:
            return self._table.add_handle(node, flags, who, is_writer=is_writer)
        except BaseException:
            if not (is_writer and self._stop_writing(node)):
                self._unpin(node)
            raise

    def open_path(self, names: Sequence[bytes], flags: int, who: Caller | None) -> Handle:
        """Opens what a path names now. Unless that is known (under a lease) one call to the directory walks
        it, tells the version and, if there is no local copy, where the content is."""
        return self._open_from(ROOT_INO, names, self._names.believed(names), flags, who)

    def open_known(
        self, ino: int, start: int, names: Sequence[bytes], flags: int, who: Caller | None
    ) -> Handle:
        """As ``open_path``, of the path ``names`` below the inode ``start``, which should lead to ``ino``.
        Raises ESTALE if it does not any more. No names: the inode itself, whatever it is called."""
        try:
            return self._open_from(start, names, ino, flags, who, must_be=ino)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise fail(errno.ESTALE, "the path leads elsewhere now") from error
            raise

    def _remember(self, way: Way) -> None:
        """Only what is believed: of an answer that came just now it may not be promised that we are told."""
        if not way.asked.mark:
            return  # there was no lease a moment ago
        if len(self._ways) >= WAYS_MAX:
            self._ways.clear()
        self._ways[way.attr.ino] = way

    def open_again(self, ino: int, flags: int, who: Caller | None) -> Handle | None:
        """Opens for reading what ``who`` has opened before, if his way there is open now too. None if that is
        not known."""
        way = self._ways.get(ino)
        if way is None or flags & _MORE_THAN_READING or way.who != who or not self._is_open_now(way):
            return None
        handle = self.open(ino, flags, who, attr=way.attr)
        handle.way = way
        return handle

    def _is_open_now(self, way: Way) -> bool:
        asked = self._names.unheard_since(way.asked, way.inos)
        if asked is None:
            return False
        way.asked = asked
        return True

    def may_rest(self, handle: Handle) -> bool:
        """Whether a handle for reading is worth a place among those that rest, and nobody else has to do with
        its file."""
        node = handle.node
        if node.pins > 1 or node.is_shared or node.copy.size > FILE_BYTES_MAX:
            return False
        return handle.way is not None and self._is_open_now(handle.way)

    def resting_handle(self, ino: int, flags: int) -> Handle | None:
        """The handle that rests of an inode, if it is what the caller for whom it was opened would get now
        too: his way is open, and the file is what it was."""
        handle = self.resting.peek(ino)
        if handle is None or handle.flags != flags or handle.node.is_shared:
            return None
        return handle if handle.way is not None and self._is_open_now(handle.way) else None

    def _has_open(self, ino: int) -> bool:
        """As above, of programs. What rests has its end: its last name is about to go."""
        self.resting.end(ino)
        return super()._has_open(ino)

    def _shown(self, attr: Attr) -> Attr:
        """As above. What rests keeps nobody from being shown another version."""
        handle = self.resting.peek(attr.ino)
        if handle is not None and handle.node.copy.version != attr.version:
            self.resting.end(attr.ino)
        return super()._shown(attr)

    def _open_from(
        self,
        start: int,
        names: Sequence[bytes],
        believed: int,
        flags: int,
        who: Caller | None,
        must_be: int = 0,
    ) -> Handle:
        if handle := self._table.opened_before():
            return self._opened_again(handle, flags)
        asked = self._names.ask()
        attrs, manifest = self.known_way(names, who, start), None
        if attrs is not None and must_be in (0, attrs[-1].ino):
            self._remember(Way(asked, tuple(attr.ino for attr in attrs), who, attrs[-1]))
        else:
            content = not flags & os.O_TRUNC and not self._copies.has(believed)
            resolved = self._names.walk_now(names, who, content=content, start=start)
            attrs, manifest = resolved.attrs, resolved.manifest
        attr = attrs[-1]
        if must_be and attr.ino != must_be:
            raise fail(errno.ESTALE, "the path leads elsewhere now")
        _check_openable(attr)
        origin = (attrs[-2].ino, names[-1]) if names else None
        return self.open(attr.ino, flags, who, attr=attr, manifest=manifest, origin=origin)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, who: Caller | None, umask: int = 0
    ) -> tuple[Handle, Attr]:
        """Makes a file and opens it, in one call to the directory; ``umask`` as for mkdir. Raises EEXIST also
        without O_EXCL: the binding then opens what is there."""
        check_name(name)
        if handle := self._table.opened_before():
            return handle, self.handle_attr(handle.number)
        lock = self._fresh_lock()
        op = Create(
            parent, name, stat.S_IFREG | stat.S_IMODE(mode), ino=lock.ino, grant=lock.grant, umask=umask
        )
        return self._open_new(op, lock, (parent, name), flags, who)

    def create_nameless(
        self, parent: int, mode: int, flags: int, who: Caller | None, umask: int = 0
    ) -> tuple[Handle, Attr]:
        """open(2) with O_TMPFILE: as ``create``, but the file is in no directory until it is linked, and goes
        with its last handle if it never is."""
        if handle := self._table.opened_before():
            return handle, self.handle_attr(handle.number)
        lock = self._fresh_lock()
        op = CreateNameless(parent, lock.ino, lock.grant, stat.S_IMODE(mode), umask)
        return self._open_new(op, lock, (parent, NO_NAME), flags, who)

    def _open_new(
        self,
        op: Create | CreateNameless,
        lock: WriteLock,
        origin: tuple[int, bytes],
        flags: int,
        who: Caller | None,
    ) -> tuple[Handle, Attr]:
        """Makes a file under its lock, which is given back if it cannot be made or opened."""
        attr = self._make_locked(op, lock, who)
        try:
            node = self._table.pin(attr)
        except BaseException:
            self._proxy.write_locks.release(lock.ino)
            raise
        with node.guard:
            node.copy.adopt(attr.version, 0)
            node.lock, node.caller = lock, who
        with node.gate:
            node.writers += 1
        try:
            node.copy.set_origin(*origin)
        except BaseException:
            if not self._stop_writing(node):
                self._unpin(node)
            raise
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if not writes:
            self._stop_writing(node)
        return self._add_handle(node, flags, who, is_writer=writes), attr

    def _make_locked(self, op: Create | CreateNameless, lock: WriteLock, who: Caller | None) -> Attr:
        try:
            return self._changed(op, who)
        except OSError as error:
            if error.errno in NOT_CREATED:
                self._calls.forget_ino()
                self._proxy.write_locks.give_back_fresh(lock)
            else:  # it may have been carried out: the number is used up
                self._proxy.write_locks.release(lock.ino)
            raise

    def _fresh_lock(self) -> WriteLock:
        """The lock of an inode that is to be made; of the one that this call has begun to make, if it has."""
        locks = self._proxy.write_locks
        begun = self._calls.fresh_ino()
        if not begun:
            return locks.take_fresh()
        return locks.held(begun) or locks.acquire(begun, 0.0)

    def _begin_reading(self, node: Node, attr: Attr, who: Caller | None) -> None:
        if not may(self._who(who), attr, READ):
            raise fail(errno.EACCES)
        with node.guard:
            if node.caller is None:
                node.caller = who
        self._follower.follow(node, attr, who)

    def release(self, number: int) -> None:
        """Closes a handle. The last writer's leaves nothing dirty behind, or a node that is tried again."""
        self._calls.closing(number)
        handle = self._table.remove_handle(number)
        self._completer.closed(handle)
        if not (handle.is_writer and self._stop_writing(handle.node)):
            self._unpin(handle.node)
        self._table.forget(handle)


def _check_openable(attr: Attr) -> None:
    if stat.S_ISDIR(attr.mode):
        raise fail(errno.EISDIR)
    if stat.S_ISLNK(attr.mode):
        raise fail(errno.ESTALE, "a symlink stands where a file was")
    if not stat.S_ISREG(attr.mode):
        raise fail(errno.ENXIO)
