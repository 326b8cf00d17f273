"""From mounting to unmounting."""

import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

from mount.bindings.native import protocol
from mount.bindings.native.context import Context
from mount.bindings.native.device import Device
from mount.bindings.native.loop import BUFFER_BYTES, DATA_BYTES, THREADS_MAX, Loop
from mount.bindings.native.notifications import ALL, Notifications
from mount.bindings.native.operations import Operations
from mount.bindings.native.passthrough import is_possible
from mount.bindings.native.protocol import Init, InitIn, InitOut, Opcode
from mount.options import MountOptions
from mount.owners import Owners
from mount.vfs import Vfs

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long what is being carried out may take when the mount is to end."""

PATIENCE_SECONDS = 30.0
"""How long all threads may be busy, besides waiting for locks and services, before something is wrong."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

WANTED = (
    Init.ASYNC_READ
    | Init.POSIX_LOCKS
    | Init.FLOCK_LOCKS
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK  # a directory's default ACL may forbid it: the directory server takes the umask away
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    # Set-id bits go when content changes: this mount shows a dirty file without them (Node.shown_attr), and
    # the directory clears them at the commit and at a change of owner. So the kernel need not look before
    # each write whether there are any.
    | Init.HANDLE_KILLPRIV_V2
    | Init.INIT_EXT
    | Init.DIRECT_IO_ALLOW_MMAP
    | Init.PASSTHROUGH
)
"""What is asked for if the kernel has it. Not AUTO_INVAL_DATA: it would drop our own pages whenever our mtime
moves on. Not WRITEBACK_CACHE: what is written must be seen by the lock's holder, this process, at once."""


def agree(asked: InitIn, wanted: Init = WANTED) -> InitOut:
    """The answer to INIT. Raises EPROTO for a kernel whose protocol is too old."""
    if asked.major != protocol.MAJOR or asked.minor < protocol.MINOR_MIN:
        raise OSError(errno.EPROTO, f"the kernel speaks FUSE {asked.major}.{asked.minor}")
    offered = asked.flags | (asked.flags2 << 32 if asked.flags & Init.INIT_EXT else 0)
    flags = int(wanted) & offered
    return InitOut(
        major=protocol.MAJOR,
        minor=min(asked.minor, protocol.MINOR),
        max_readahead=asked.max_readahead,
        flags=flags & 0xFFFFFFFF,
        max_background=THREADS_MAX // 2,
        congestion_threshold=THREADS_MAX // 2,
        max_write=DATA_BYTES,
        time_gran=1,
        max_pages=DATA_BYTES // PAGE_BYTES,
        map_alignment=0,
        flags2=flags >> 32,
        # The cache folder's file system must not be stacked on another one itself.
        max_stack_depth=1 if flags & Init.PASSTHROUGH else 0,
        request_timeout=0,
    )


def read_init(data: bytes) -> tuple[int, InitIn]:
    """The first request: its number, and what it asks. Raises Malformed."""
    head = protocol.IN_HEADER.read(data)
    if head.opcode != Opcode.INIT:
        raise protocol.Malformed(f"the kernel begins with opcode {head.opcode}")
    first = protocol.IN_HEADER.size
    if len(data) < first + protocol.INIT_IN.size:
        return head.unique, InitIn(*protocol.INIT_IN_OLD.read(data, first), flags2=0)
    return head.unique, protocol.INIT_IN.read(data, first)


def _begin(device: Device, vfs: Vfs, wanted: Init) -> InitOut:
    """Answers INIT, and tells how."""
    unique, asked = read_init(os.read(device.descriptor, BUFFER_BYTES))
    agreed = agree(asked, wanted)
    answer = protocol.INIT_OUT.pack(*agreed)
    vfs.slate.keep_init_answer(answer)
    vfs.calls.note_all = not asked.flags2 << 32 & Init.HAS_RESEND
    header = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(answer), 0, unique)
    os.write(device.descriptor, header + answer)
    log.info("speaking FUSE %d.%d with the kernel", agreed.major, agreed.minor)
    return agreed


def _go_on(notifications: Notifications, vfs: Vfs, loop: Loop) -> None:
    """As the next worker. The kernel says INIT once, and an earlier one has agreed. What that one had read
    and not answered comes once more; where the kernel is too old for that, it fails."""
    if notifications.resend():
        return
    vfs.calls.note_all = True
    for unique in vfs.give_up_calls():
        log.info("call %d was under way when the worker before ended: EIO", unique)
        loop.fail(unique)


def _wanted(vfs: Vfs, mount: MountOptions) -> Init:
    wanted = WANTED
    if not mount.passthrough:
        wanted &= ~Init.PASSTHROUGH
    if not mount.trusted:  # it means default_permissions too: see Device
        wanted &= ~Init.POSIX_ACL
    if vfs.is_exact:  # each name is looked up all the same (see beliefs), which then costs no round trip
        wanted &= ~(Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO)
    return wanted


@contextmanager
def signals_tell(ended: SimpleQueue[None]) -> Iterator[None]:
    """For the length of a block, signals that end a process only put something into the queue. Not an event:
    its lock may be held by the very thread that handles the signal, for another one."""
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before = signal.signal(number, lambda *_: ended.put(None))
            stack.callback(signal.signal, number, before)
        yield


def _work(
    device: Device, the: Context, loop: Loop, on_ready: Callable[[], None], *, takes_over: bool
) -> None:
    """Answers until nothing more is asked, or a signal says that it is enough."""
    with signals_tell(loop.ended):
        loop.start()
        the.vfs.listen(the.beliefs, takes_over=takes_over)
        on_ready()
        for handle in the.vfs.handles():  # of an earlier worker, who knew of which version the pages are
            the.notifications.drop(handle.node.ino, ALL)
        loop.ended.get()
        if not loop.is_gone:
            device.unmount()
        loop.stop(STOP_SECONDS)
        the.passthrough.close()


def serve(vfs: Vfs, mount: MountOptions, owners: Owners, on_ready: Callable[[bool], None]) -> None:
    """Mounts (unless the keeper has) and answers until it is unmounted, or a signal (SIGTERM, SIGINT, SIGHUP)
    ends it. To be called by the main thread. ``on_ready`` is called when the kernel has begun to ask, and
    told whether it serves open files itself.

    Raises OSError if it cannot be mounted.
    """
    device = Device(mount)
    try:
        answer = vfs.slate.init_answer
        if answer is None:
            agreed = _begin(device, vfs, _wanted(vfs, mount))
        else:
            agreed = protocol.INIT_OUT.read(answer)
        passes = bool(agreed.max_stack_depth) and is_possible(device.descriptor, mount.cache_dir)
        the = Context(
            vfs,
            device.descriptor,
            owners,
            trusted=mount.trusted,
            passes=passes,
            mountpoint=mount.mountpoint,
            names_may_go=agreed.minor >= protocol.MINOR_OF_EPOCHS,
        )
        loop = Loop(device.descriptor, Operations(the), vfs.calls)
        patience_seconds = PATIENCE_SECONDS + mount.lock_wait_seconds + 2 * mount.deadline_seconds
        vfs.checks.append(lambda: loop.is_able(patience_seconds))
        if answer is not None:
            _go_on(the.notifications, vfs, loop)
        _work(device, the, loop, lambda: on_ready(passes), takes_over=answer is not None)
    except BaseException:
        if mount.device is None:
            device.unmount()
        raise
