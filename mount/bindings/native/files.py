"""Requests that are about open files.

A handle's number is the Vfs's. Files that append go around the kernel's pages: its idea of where a file ends
may be old, the Vfs's is not.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mount import turns
from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.notifications import ALL
from mount.bindings.native.passthrough import PAGED, PASSTHROUGH
from mount.bindings.native.protocol import Fopen, Opcode
from mount.bindings.native.requests import DONE, Answer, Methods, MethodsAtOnce, Request
from mount.bindings.ranges import signed
from mount.nodes import Handle
from mount.tree import Changes
from wire.errors import fail
from wire.permissions import SET_IDS

KEEP_CACHE, NOFLUSH = int(Fopen.KEEP_CACHE), int(Fopen.NOFLUSH)

WRITES = os.O_ACCMODE | os.O_TRUNC

COPY_BYTES_MAX = 1 << 30
"""At a time: the older answer has 32 bits for it, and programs ask again for the rest."""


class Files:
    """One method an opcode, as ``methods`` says."""

    def __init__(self, the: Context) -> None:
        self._the = the
        self._open = {handle.number: handle for handle in the.vfs.handles()}  # of an earlier worker
        self.methods: Methods = {
            Opcode.OPEN: self.open,
            Opcode.CREATE: self.create,
            Opcode.TMPFILE: self.tmpfile,
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.FLUSH: self.flush,
            Opcode.FSYNC: self.fsync,
            Opcode.RELEASE: self.release,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.LSEEK: self.lseek,
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self.copy_file_range,
        }
        self.at_once: MethodsAtOnce = {
            Opcode.OPEN: self.open_at_once,
            Opcode.RELEASE: self.release_at_once,
        }
        the.vfs.resting.close_handle = self._close
        for handle in self._open.values():
            the.inodes.restored(handle.node.ino)

    def open_at_once(self, unique: int, ino: int, body: memoryview) -> bytes | None:
        """As ``open``, of a file whose last reader's handle rests (mount.resting)."""
        the = self._the
        handle = the.vfs.resting_handle(ino, protocol.OPEN_IN.read(body).flags)
        if handle is None or not the.inodes.wakes(handle.node):
            return None
        if not the.vfs.resting.wake(handle, unique):
            the.inodes.rests(ino)
            return None
        return protocol.OPEN_OUT.pack(handle.number, KEEP_CACHE | NOFLUSH, 0)

    def open(self, request: Request) -> Answer:
        """open(2) of what the kernel believes a path to name."""
        self._the.vfs.resting.end(request.nodeid)
        asked = protocol.OPEN_IN.read(request.body)
        if asked.flags & WRITES:
            turns.about_to_wait()
        if asked.flags & os.O_TRUNC and self._the.inodes.is_open(request.nodeid):
            # What was written through maps comes now, and not into the file that is truncated.
            self._the.notifications.drop(request.nodeid, ALL)
        if not self._may_be_refused(request.nodeid, asked.flags):
            return self._opened(self._open_inode(request, asked.flags))
        handle = self._open_inode(request, asked.flags & ~os.O_TRUNC)
        answer = self._opened(handle)
        with self._closed_on_failure(handle):
            self._truncate(handle)
        return answer

    def _may_be_refused(self, ino: int, flags: int) -> bool:
        """Whether it must not be truncated before it is known that it can be opened."""
        return bool(flags & os.O_TRUNC) and self._the.passthrough.may_refuse(ino, flags)

    def _truncate(self, handle: Handle) -> None:
        self._the.vfs.setattr(handle.node.ino, Changes(size=0), handle.caller, handle.number)

    @contextmanager
    def _closed_on_failure(self, handle: Handle) -> Iterator[None]:
        """For what is done between an open and its answer."""
        try:
            yield
        except BaseException:
            del self._open[handle.number]
            self._the.passthrough.closed(handle)
            raise

    def _open_inode(self, request: Request, flags: int) -> Handle:
        the, ino, who = self._the, request.nodeid, self._the.who(request)
        if handle := the.vfs.open_again(ino, flags, who):
            return handle
        try:
            # Under a lease the kernel knows no name that leads elsewhere, so any that leads there will do.
            known = the.inodes.path(ino) if the.vfs.is_exact else the.inodes.path_to_open(ino, request.pid)
            if known is None:
                raise fail(errno.ESTALE, "it has another name now")
            start, names = known
            try:
                return the.vfs.open_known(ino, start, names, flags, who)
            except PermissionError:
                if len(names) < 2:
                    raise
                # Who works in a directory needs no way to it from the root.
                start, names = the.inodes.path(ino, steps=1)
                return the.vfs.open_known(ino, start, names, flags, who)
        except OSError as error:
            if error.errno == errno.ESTALE:
                # The kernel tries again (do_filp_open() of fs/namei.c), and asks for every name on the way.
                the.inodes.stale(ino, request.pid)
            raise

    def create(self, request: Request) -> Answer:
        """open(2) with O_CREAT of a name that the kernel believes to be free."""
        asked = protocol.CREATE_IN.read(request.body)
        (name,) = protocol.text(request.body, 1, protocol.CREATE_IN.size)
        the, parent, who = self._the, request.nodeid, self._the.who(request)
        try:
            handle, attr = the.vfs.create(parent, name, asked.mode, asked.flags, who, asked.umask)
        except FileExistsError:
            if asked.flags & os.O_EXCL:
                raise
            return self._open_existing(request, parent, name, asked.flags)
        answer = self._opened(handle)
        return the.entry(parent, name, attr) + answer

    def tmpfile(self, request: Request) -> Answer:
        """open(2) with O_TMPFILE: fuse_tmpfile() of fs/fuse/dir.c. The name that comes along is nobody's."""
        asked = protocol.CREATE_IN.read(request.body)
        the = self._the
        handle, attr = the.vfs.create_nameless(
            request.nodeid, asked.mode, asked.flags, the.who(request), asked.umask
        )
        answer = self._opened(handle)
        return the.nameless_entry(attr) + answer

    def _open_existing(self, request: Request, parent: int, name: bytes, flags: int) -> bytes:
        """What another mount has made meanwhile. The kernel counts a lookup only if it is answered; and which
        inode it is, so whether it can be opened, is not known before."""
        the, who = self._the, self._the.who(request)
        start, names = the.inodes.path(parent)
        truncates_later = flags & (os.O_TRUNC | os.O_ACCMODE) == os.O_TRUNC | os.O_RDWR
        first = flags & ~os.O_TRUNC if truncates_later else flags
        handle = the.vfs.open_known(0, start, [*names, name], first, who)
        answer = self._opened(handle)
        with self._closed_on_failure(handle):
            if truncates_later:
                self._truncate(handle)
            attr = the.vfs.handle_attr(handle.number)
        return the.known_entry(parent, name, attr) + answer

    def _opened(self, handle: Handle) -> bytes:
        """fuse_open_out."""
        if handle.number in self._open:  # of an earlier worker, who died before it could say so
            self._the.inodes.closed(handle.node)
        self._open[handle.number] = handle
        keep = self._the.inodes.opened(handle.node, self._the.notifications.drop)
        try:
            flags, backing = self._the.passthrough.opened(handle)
        except BaseException:
            del self._open[handle.number]
            self._the.release(handle)
            raise
        if keep and not flags & PASSTHROUGH:  # the kernel takes these two for a mistake
            flags |= KEEP_CACHE
        if not handle.is_writer and not handle.node.is_shared:  # a close(2) may end locks
            flags |= NOFLUSH
        return protocol.OPEN_OUT.pack(handle.number, flags, backing)

    def read(self, request: Request) -> Answer:
        """pread(2), or a page."""
        asked = protocol.READ_IN.read(request.body)
        if asked.offset > protocol.OFFSET_MAX:
            raise fail(errno.EINVAL)
        room = request.room[: asked.size]
        return room[: self._the.vfs.read_into(asked.fh, asked.offset, room)]

    def write(self, request: Request) -> Answer:
        """pwrite(2), or a page of a mapping."""
        asked = protocol.WRITE_IN.read(request.body)
        data = request.body[protocol.WRITE_IN.size : protocol.WRITE_IN.size + asked.size]
        if len(data) != asked.size:
            raise protocol.Malformed("the data is not there")
        handle = self._handle(asked.fh)
        appends = bool(asked.flags & os.O_APPEND) and not asked.write_flags & protocol.WRITE_CACHE
        if asked.write_flags & protocol.WRITE_KILL_SUIDGID and handle.node.attr.mode & SET_IDS:
            self._the.vfs.drop_privileges(handle.node.ino, handle.caller)
        try:
            done = self._the.vfs.write(asked.fh, asked.offset, data, appends=appends)
        except OSError:
            self._the.inodes.doubted(handle.node.ino)
            raise
        if appends:
            self._appended(handle, asked.offset, done)
        return protocol.WRITE_OUT.pack(done, 0)

    def _appended(self, handle: Handle, offset: int, done: int) -> None:
        """The kernel has written elsewhere than it knows: its pages from there on are not what they were.

        Writes to one inode come one after another (the kernel holds its lock), so the handle's last is ours.
        A handle that does not go around the pages has begun to append later (fcntl(2)): its page is locked
        until this is answered, and cannot be dropped before.
        """
        ino, at = handle.node.ino, handle.next_write - done
        if handle.appends:
            if not self._the.notifications.drop(ino, min(at, offset)):
                self._the.inodes.doubted(ino)
        elif at != offset:
            self._the.inodes.doubted(ino)

    def flush(self, request: Request) -> Answer:
        """close(2) of one of a file's descriptors."""
        asked = protocol.FLUSH_IN.read(request.body)
        handle = self._handle(asked.fh)
        try:
            return self._saved(handle, self._the.vfs.flush)
        finally:
            if handle.node.is_shared:
                self._the.vfs.unlock_owner(asked.fh, signed(asked.lock_owner))

    def fsync(self, request: Request) -> Answer:
        """fsync(2) and fdatasync(2)."""
        number = protocol.FSYNC_IN.read(request.body).fh
        return self._saved(self._handle(number), self._the.vfs.fsync)

    def _saved(self, handle: Handle, save: Callable[[int], int]) -> Answer:
        try:
            save(handle.number)
        except OSError:
            self._the.inodes.doubted(handle.node.ino)
            raise
        self._the.inodes.committed(handle.node)
        return DONE

    def release_at_once(self, _unique: int, _ino: int, body: memoryview) -> bytes | None:
        """As ``release``, of a file that will be opened again soon, presumably. The session's own user is the
        only caller: who comes next need not be told apart."""
        the, handle = self._the, self._open.get(protocol.RELEASE_IN.read(body).fh)
        if handle is None or handle.way is None or the.is_trusted or handle.record.served != PAGED:
            return None
        if not the.vfs.may_rest(handle) or not the.vfs.resting.lay(handle):
            return None
        the.inodes.rests(handle.node.ino)
        return DONE

    def release(self, request: Request) -> Answer:
        """Nobody has the open file any more."""
        handle = self._open.get(protocol.RELEASE_IN.read(request.body).fh)
        if handle is not None:  # else an earlier worker has closed it, and could not say so any more
            self._close(handle)
        return DONE

    def _close(self, handle: Handle) -> None:
        self._open.pop(handle.number)
        if handle.is_writer or handle.node.is_shared:
            turns.about_to_wait()
        self._the.vfs.unlock_handle(handle.number)  # a map may outlive it
        if self._the.passthrough.closed(handle):
            self._the.notifications.drop(handle.node.ino, ALL)

    def fallocate(self, request: Request) -> Answer:
        """fallocate(2). The kernel drops the pages of a hole itself."""
        asked = protocol.FALLOCATE_IN.read(request.body)
        self._the.vfs.fallocate(asked.fh, asked.mode, asked.offset, asked.length)
        return DONE

    def lseek(self, request: Request) -> Answer:
        """lseek(2) for SEEK_DATA and SEEK_HOLE; the kernel knows the others itself."""
        asked = protocol.LSEEK_IN.read(request.body)
        return protocol.LSEEK_OUT.pack(self._the.vfs.seek(asked.fh, asked.offset, asked.whence))

    def copy_file_range(self, request: Request) -> Answer:
        """copy_file_range(2). The kernel drops the pages of what is copied to; before it asks, it has written
        back what programs have mapped."""
        asked = protocol.COPY_FILE_RANGE_IN.read(request.body)
        if asked.flags:
            raise fail(errno.EINVAL)
        done = self._the.vfs.copy_range(
            asked.fh_in, asked.off_in, asked.fh_out, asked.off_out, min(asked.len, COPY_BYTES_MAX)
        )
        if request.opcode == Opcode.COPY_FILE_RANGE:
            return protocol.WRITE_OUT.pack(done, 0)
        return protocol.COPY_FILE_RANGE_OUT.pack(done)

    def _handle(self, number: int) -> Handle:
        handle = self._open.get(number)
        if handle is None:
            raise fail(errno.EBADF)
        return handle
