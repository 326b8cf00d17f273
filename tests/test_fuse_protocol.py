"""What is spoken over /dev/fuse: against the system's own header, and against what no kernel would send.

None of this needs /dev/fuse: the kernel's place is taken by the test, at the other end of a socket.
"""

import errno
import logging
import os
import re
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mount import turns
from mount.bindings.native import loop, protocol
from mount.bindings.native.loop import IDLE_MAX
from mount.bindings.native.notifications import ALL
from mount.bindings.native.operations import Operations
from mount.bindings.native.protocol import Fattr, Fopen, Init, InitIn, Notify, Opcode, Structure
from mount.bindings.native.requests import Request
from mount.bindings.native.serving import agree, read_init, signals_tell
from mount.nodes import Handle
from tests.support.kernel import Kernel, request
from tests.support.stack import Stack
from tests.support.times import wait_until
from wire.messages.directory import ROOT_INO

HEADER = Path("/usr/include/linux/fuse.h")

NEWER = {
    "FUSE_STATX": (52, "6.6"),
    "FUSE_COPY_FILE_RANGE_64": (53, "6.18"),
    "FUSE_NOTIFY_RESEND": (7, "6.9"),
    "FUSE_NOTIFY_INC_EPOCH": (8, "6.16"),
    "FUSE_DIRECT_IO_ALLOW_MMAP": (1 << 36, "6.6"),
    "FUSE_HAS_RESEND": (1 << 39, "6.9"),
    "FUSE_UNIQUE_RESEND": (1 << 63, "6.9"),
    "FUSE_PASSTHROUGH": (1 << 37, "6.9"),
    "FOPEN_PASSTHROUGH": (1 << 7, "6.9"),
}
"""What the header may be too old for: the number, and the first Linux that has it."""

NEWER_SIZES = {
    "fuse_statx_in": (24, "6.6"),
    "fuse_statx_out": (288, "6.6"),
    "fuse_copy_file_range_out": (8, "6.18"),
    "fuse_backing_map": (16, "6.9"),
}
"""The same of structures, in bytes."""

COMPOSED = {
    "fuse_attr_out": protocol.ATTR_OUT.size + protocol.ATTR.size,
    "fuse_entry_out": protocol.ENTRY_OUT.size + protocol.ATTR.size,
    "fuse_direntplus": protocol.ENTRY_OUT.size + protocol.ATTR.size + protocol.DIRENT.size,
}
"""Structures that are put together of several of ours."""

RENAMED = {"fuse_init_in", "fuse_init_out", "fuse_lk_in", "fuse_lk_out", "fuse_open_out", "fuse_statx_out"}
"""Of which fields have got other names since, or have names of ours."""

WIDTHS = {"uint64_t": 8, "int64_t": 8, "uint32_t": 4, "int32_t": 4, "uint16_t": 2, "char": 0}

needs_header = pytest.mark.skipif(not HEADER.exists(), reason="there is no <linux/fuse.h>")


class Field(NamedTuple):
    """One line of a structure."""

    kind: str
    name: str
    length: str


class Header:
    """<linux/fuse.h>, as far as it is needed."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        plain = re.findall(r"^#define\s+(\w+)\s+(\d+)\s*$", text, re.MULTILINE)
        bits = re.findall(r"^#define\s+(\w+)\s+\(1(?:ULL|ull)?\s*<<\s*(\d+)\)\s*$", text, re.MULTILINE)
        listed = re.findall(r"^\s+(\w+)\s*=\s*(\d+),", text, re.MULTILINE)
        self.numbers = {name: int(value) for name, value in plain + listed}
        self.numbers |= {name: 1 << int(bit) for name, bit in bits}
        self.fields = {
            name: [Field(*field) for field in re.findall(r"(\w+)\s+(\w+)(?:\[(\d*)\])?;", body)]
            for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.MULTILINE | re.DOTALL)
        }

    def size(self, kind: str) -> int:
        """In bytes."""
        if kind in WIDTHS:
            return WIDTHS[kind]
        return sum(self.size(field.kind) * int(field.length or 1) for field in self.fields[kind])


@pytest.fixture(scope="module")
def header() -> Header:
    """The one of this system."""
    return Header(HEADER.read_text())


def structures() -> list[Structure[Any]]:
    """Those of ours that are whole ones of the header."""
    found = [value for value in vars(protocol).values() if isinstance(value, Structure)]
    return [structure for structure in found if " " not in structure.name]


@needs_header
@pytest.mark.parametrize("structure", structures(), ids=lambda structure: structure.name)
def test_structures_are_those_of_the_header(structure: Structure[Any], header: Header) -> None:
    fields = header.fields.get(structure.name)
    if fields is None:
        assert structure.size == NEWER_SIZES[structure.name][0]
        return
    assert structure.size == header.size(structure.name)
    if structure.name not in RENAMED:
        ours = [name.rstrip("_") for name in vars(structure.kind)["_fields"]]
        assert ours == [field.name for field in fields if not field.length and field.kind != "char"]


@needs_header
def test_what_is_put_together_of_several_structures(header: Header) -> None:
    assert {name: header.size(name) for name in COMPOSED} == COMPOSED


@needs_header
@pytest.mark.parametrize(
    ("prefix", "numbers"),
    [("FUSE_", Opcode), ("FUSE_", Init), ("FOPEN_", Fopen), ("FATTR_", Fattr), ("FUSE_NOTIFY_", Notify)],
)
def test_numbers_are_those_of_the_header(prefix: str, numbers: Any, header: Header) -> None:
    known = {name: value for name, (value, _) in NEWER.items()} | header.numbers
    for number in numbers:
        assert known[prefix + number.name] == number, number


@needs_header
def test_other_numbers(header: Header) -> None:
    assert header.numbers["FUSE_ROOT_ID"] == protocol.ROOT_ID
    assert header.numbers["FUSE_GETATTR_FH"] == protocol.GETATTR_FH
    assert header.numbers["FUSE_KERNEL_VERSION"] == protocol.MAJOR
    assert header.numbers["FUSE_MIN_READ_BUFFER"] == protocol.MIN_READ_BUFFER
    assert header.numbers["FUSE_WRITE_CACHE"] == protocol.WRITE_CACHE
    assert header.numbers["FUSE_WRITE_KILL_SUIDGID"] == protocol.WRITE_KILL_SUIDGID


# The beginning


def test_only_what_the_kernel_offers_is_asked_for() -> None:
    offered = Init.ASYNC_READ | Init.MAX_PAGES | Init.INIT_EXT
    answer = agree(InitIn(7, 36, 131072, int(offered) | 1 << 16, 0))
    assert (answer.minor, answer.flags, answer.flags2) == (36, offered, 0)
    everything = agree(InitIn(7, 99, 131072, 0xFFFFFFFF, 0xFFFFFFFF))
    assert everything.minor == protocol.MINOR
    assert everything.flags2 << 32 == Init.DIRECT_IO_ALLOW_MMAP | Init.PASSTHROUGH


def test_without_init_ext_the_second_flags_mean_nothing() -> None:
    assert agree(InitIn(7, 31, 0, 0, 0xFFFFFFFF)).flags2 == 0


def test_a_kernel_that_is_too_old_is_told() -> None:
    with pytest.raises(OSError, match=r"7\.23"):
        agree(InitIn(7, 23, 0, 0, 0))


@pytest.mark.parametrize("length", [16, 64])
def test_both_lengths_of_init_are_read(length: int) -> None:
    body = struct.pack("=IIII", 7, 31, 4096, 8).ljust(length, b"\0")
    assert read_init(request(Opcode.INIT, body, 5)) == (5, InitIn(7, 31, 4096, 8, 0))


def test_another_beginning_is_refused() -> None:
    with pytest.raises(protocol.Malformed):
        read_init(request(Opcode.LOOKUP, b"name\0"))


# Requests


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One that has mounted a realm with a file and a directory."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        found = Kernel(stack)
        yield found
        found.close()


def test_a_file_from_its_making_to_its_end(kernel: Kernel) -> None:
    ino, number = kernel.create(b"file")
    write = protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0)
    assert kernel.ask(Opcode.WRITE, write + b"hello", ino) == (0, protocol.WRITE_OUT.pack(5, 0))
    read = protocol.READ_IN.pack(number, 1, 100, 0, 0, 0, 0)
    assert kernel.ask(Opcode.READ, read, ino) == (0, b"ello")
    assert kernel.ask(Opcode.FLUSH, protocol.FLUSH_IN.pack(number, 0, 0, 0), ino) == (0, b"")
    assert kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino) == (0, b"")
    assert kernel.ask(Opcode.READ, read, ino)[0] == errno.EBADF
    status, answer = kernel.ask(Opcode.LOOKUP, b"file\0")
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    assert (status, attr.ino, attr.size, stat.S_ISREG(attr.mode)) == (0, ino, 5, True)
    kernel.ask(Opcode.FORGET, protocol.FORGET_IN.pack(2), ino)
    assert kernel.ask(Opcode.UNLINK, b"file\0") == (0, b"")
    assert kernel.ask(Opcode.LOOKUP, b"file\0")[0] == errno.ENOENT


@pytest.mark.parametrize("opcode", [Opcode.CREATE, Opcode.OPEN])
def test_what_cannot_be_opened_keeps_its_content_and_is_not_looked_up(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, opcode: Opcode
) -> None:
    name = b"kept-%d" % opcode
    ino, number = kernel.create(name)
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    lookups = kernel.the.inodes._records[ino].lookups

    def busy(_: Handle) -> tuple[Fopen, int]:
        raise OSError(errno.EBUSY, "refused")

    with monkeypatch.context() as patched:
        patched.setattr(kernel.the.passthrough, "opened", busy)
        patched.setattr(kernel.the.passthrough, "may_refuse", lambda *_: True)
        flags = os.O_RDWR | os.O_TRUNC | os.O_CREAT
        if opcode == Opcode.CREATE:
            asked = kernel.ask(opcode, protocol.CREATE_IN.pack(flags, 0o644, 0, 0) + name + b"\0")
        else:
            asked = kernel.ask(opcode, protocol.OPEN_IN.pack(flags, 0), ino)
        assert asked[0] == errno.EBUSY
    record = kernel.the.inodes._records[ino]
    assert (record.lookups, record.open) == (lookups, 0)
    assert kernel.the.vfs.getattr(ino, None).size == 5
    assert not kernel.the.vfs.handles()


def test_a_file_that_was_made_meanwhile_is_opened_and_truncated(kernel: Kernel) -> None:
    ino, number = kernel.create(b"made")
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    body = protocol.CREATE_IN.pack(os.O_RDWR | os.O_TRUNC | os.O_CREAT, 0o644, 0, 0) + b"made\0"
    status, answer = kernel.ask(Opcode.CREATE, body)
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    assert (status, attr.ino, attr.size) == (0, ino, 0)
    number = protocol.OPEN_OUT.read(answer, COMPOSED["fuse_entry_out"]).fh
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_a_file_that_is_made_without_a_name_gets_one(kernel: Kernel) -> None:
    body = protocol.CREATE_IN.pack(os.O_TMPFILE | os.O_RDWR, 0o100666, 0o022, 0) + b"/\0"
    status, answer = kernel.ask(Opcode.TMPFILE, body)
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    number = protocol.OPEN_OUT.read(answer, COMPOSED["fuse_entry_out"]).fh
    assert (status, attr.mode, attr.nlink) == (0, 0o100644, 0)
    ino = protocol.ENTRY_OUT.read(answer).nodeid
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    status, answer = kernel.ask(Opcode.LINK, protocol.LINK_IN.pack(ino) + b"linked\0")
    attr = protocol.ATTR.read(answer, protocol.ENTRY_OUT.size)
    assert (status, attr.ino, attr.nlink, attr.size) == (0, ino, 1, 5)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    assert kernel.the.inodes._records[ino].lookups == 2, "each answer counts as one"
    assert kernel.the.inodes.path(ino) == (1, [b"linked"])


def test_who_opens_a_file_while_its_last_reader_closes_it_keeps_its_pages(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, number = kernel.create(b"read")
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, 0o2, 0) + b"hello", ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    vfs, inodes = kernel.the.vfs, kernel.the.inodes
    first = vfs.open(ino, os.O_RDONLY, None)
    inodes.opened(first.node, lambda *_: True)
    opened: list[Handle] = []
    kept: list[bool] = []
    real = vfs.release

    def release(number: int) -> None:
        real(number)
        if not opened:
            opened.append(vfs.open(ino, os.O_RDONLY, None))
            kept.append(inodes.opened(opened[0].node, lambda *_: False))

    monkeypatch.setattr(vfs, "release", release)
    kernel.the.release(first)
    assert opened[0].node is not first.node
    assert kept == [True]
    kernel.the.release(opened[0])
    assert inodes._records[ino].open == 0


def test_the_length_of_an_extended_attribute_is_asked_for_first(kernel: Kernel) -> None:
    ino, number = kernel.create(b"noted")
    value = b"a value"
    body = protocol.SETXATTR_IN.pack(len(value), 0) + b"user.note\0" + value
    assert kernel.ask(Opcode.SETXATTR, body, ino) == (0, b"")

    def get(size: int) -> tuple[int, bytes]:
        return kernel.ask(Opcode.GETXATTR, protocol.GETXATTR_IN.pack(size, 0) + b"user.note\0", ino)

    assert get(0) == (0, protocol.GETXATTR_OUT.pack(7, 0))
    assert get(7) == (0, value)
    assert get(6) == (errno.ERANGE, b"")
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_offsets_and_times_beyond_what_there_is(kernel: Kernel) -> None:
    ino, number = kernel.create(b"far")
    read = protocol.READ_IN.pack(number, 2**64 - 1, 100, 0, 0, 0, 0)
    assert kernel.ask(Opcode.READ, read, ino)[0] == errno.EINVAL
    fields = protocol.SETATTR_IN.kind(*[0] * 16)._replace(valid=Fattr.MTIME, mtime=10**12)
    status, answer = kernel.ask(Opcode.SETATTR, protocol.SETATTR_IN.pack(*fields), ino)
    attr = protocol.ATTR.read(answer, protocol.ATTR_OUT.size)
    assert (status, attr.mtime, attr.mtimensec) == (0, *divmod(2**63 - 1, 10**9))
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_times_before_1970(kernel: Kernel) -> None:
    ino, number = kernel.create(b"old")
    before = 2**64 - 5
    fields = protocol.SETATTR_IN.kind(*[0] * 16)._replace(valid=Fattr.MTIME, mtime=before, mtimensec=7)
    status, answer = kernel.ask(Opcode.SETATTR, protocol.SETATTR_IN.pack(*fields), ino)
    attr = protocol.ATTR.read(answer, protocol.ATTR_OUT.size)
    assert (status, attr.mtime, attr.mtimensec) == (0, before, 7)
    _, answer = kernel.ask(Opcode.STATX, protocol.STATX_IN.pack(0, 0, 0, 0, 0), ino)
    assert (protocol.STATX_OUT.read(answer).mtime, protocol.STATX_OUT.read(answer).mtimensec) == (-5, 7)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)


def test_what_is_not_known_is_said_so(kernel: Kernel) -> None:
    assert kernel.ask(999) == (errno.ENOSYS, b"")
    assert kernel.ask(Opcode.IOCTL) == (errno.ENOTTY, b"")


def test_a_request_that_is_no_request_is_not_the_end(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        assert kernel.ask(Opcode.LOOKUP, b"no end") == (errno.EINVAL, b"")
        assert kernel.ask(Opcode.SETATTR, b"short") == (errno.EINVAL, b"")
        kernel.ask(Opcode.BATCH_FORGET, protocol.BATCH_FORGET_IN.pack(2**32 - 1, 0))
        assert kernel.ask(Opcode.STATFS)[0] == 0


def test_without_another_thread_those_that_are_there_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stack(tmp_path) as stack:
        kernel = Kernel(stack)
        start = threading.Thread.start

        def fails(thread: threading.Thread) -> None:
            if thread.name == "fuse":
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fails)
            assert kernel.ask(Opcode.STATFS)[0] == 0
            assert kernel.ask(Opcode.STATFS)[0] == 0
        kernel.close()


def test_signals_that_come_while_one_is_handled_are_no_deadlock() -> None:
    ended: SimpleQueue[None] = SimpleQueue()
    script = "import os, signal\nwhile True: os.kill(os.getppid(), signal.SIGHUP)"
    with signals_tell(ended), subprocess.Popen([sys.executable, "-c", script]) as sender:
        try:
            for _ in range(3000):
                ended.get()
        finally:
            sender.kill()
            sender.wait()


WORDS = st.one_of(st.sampled_from([0, 1, 2, 3, 4096, 2**31, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
BODIES = st.tuples(
    st.lists(WORDS, max_size=12).map(lambda words: b"".join(word.to_bytes(8, "little") for word in words)),
    st.sampled_from([b"", b"\0", b"noted\0", b"other\0", b"a/b\0", b"x\0y\0", b"." * 300 + b"\0"]),
    st.binary(max_size=40),
).map(b"".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(Opcode), st.one_of(st.integers(0, 5), WORDS), BODIES)
def test_whatever_comes_is_answered(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, opcode: Opcode, nodeid: int, body: bytes
) -> None:
    caplog.clear()
    status, _ = kernel.ask(opcode, body, nodeid)
    assert status in errno.errorcode or status == 0
    unforeseen = [record.getMessage() for record in caplog.records if record.exc_info]
    assert not unforeseen, unforeseen
    caplog.clear()


def test_what_the_kernel_forgets_is_not_kept(kernel: Kernel) -> None:
    inos = []
    for number in range(3):
        _, answer = kernel.ask(Opcode.SYMLINK, b"link-%d\0there\0" % number)
        inos.append(protocol.ENTRY_OUT.read(answer).nodeid)
        kernel.ask(Opcode.READLINK, nodeid=inos[-1])
    known, cache = len(kernel.the.inodes), kernel.the.vfs._names._cache
    cache._kept = 0
    assert None not in [cache.get_target(ino) for ino in inos]
    several = b"".join(protocol.FORGET_ONE.pack(ino, 1) for ino in inos[1:])
    for opcode, body in (
        (Opcode.FORGET, protocol.FORGET_IN.pack(1)),
        (Opcode.BATCH_FORGET, protocol.BATCH_FORGET_IN.pack(2, 0) + several),
    ):  # not through the socket: they are not answered, so nothing says when they are carried out
        asked = Request(opcode, 2, inos[0], 0, 0, 0, memoryview(body), memoryview(b""))
        Operations(kernel.the).answer(asked)
    assert len(kernel.the.inodes) == known - 3
    assert [cache.get_target(ino) for ino in inos] == [None] * 3
    assert [cache.get_entry(ROOT_INO, b"link-%d" % number) for number in range(3)] == [None] * 3


def test_no_threads_are_started_to_forget(kernel: Kernel) -> None:
    def are_all_busy() -> bool:
        with kernel.loop._guard:
            return kernel.loop._idle == 0

    with kernel.the.inodes._guard:  # so that none of them ends
        for _ in range(2 * IDLE_MAX + 2):
            kernel.ask(Opcode.FORGET, protocol.FORGET_IN.pack(1), 1 << 40)
        wait_until(are_all_busy)
    assert kernel.ask(Opcode.LOOKUP, b"nothing\0")[0] == errno.ENOENT


def test_calls_that_overlap_again_and_again_start_no_threads(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serving() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "fuse"}

    def idle() -> tuple[int, int]:
        with kernel.loop._guard:
            return kernel.loop._idle, kernel.loop._threads

    def overlap() -> None:
        """As many as there are threads at leisure."""
        with kernel.the.inodes._guard:  # so that none of them ends
            for unique in range(1000, 1000 + IDLE_MAX):
                kernel._socket.sendall(request(Opcode.GETATTR, protocol.GETATTR_IN.pack(0, 0, 0), unique))
            wait_until(lambda: idle()[1] - idle()[0] == IDLE_MAX)
        for _ in range(IDLE_MAX):
            kernel._socket.recv(1000)
        wait_until(lambda: idle()[0] == idle()[1])

    monkeypatch.setattr(loop, "KEEPS", frozenset())
    monkeypatch.setattr(loop, "SPARE_SECONDS", 1000.0)
    overlap()
    before = serving()
    assert len(before) > IDLE_MAX
    overlap()
    assert serving() <= before
    monkeypatch.setattr(loop, "SPARE_SECONDS", 0.0)

    def are_few() -> bool:
        """Each time no more end than were at work."""
        overlap()
        return len(serving()) == IDLE_MAX

    wait_until(are_few)


def test_who_waits_for_a_service_lets_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stack(tmp_path) as stack:
        kernel, goes_on = Kernel(stack), threading.Event()
        kernel.loop._kept_seconds = 1000.0
        wire = vars(kernel.the.vfs._proxy.directory._channel._wire)["_wire"]
        send = wire.send
        monkeypatch.setattr(wire, "send", lambda *args: goes_on.wait(20) and send(*args))
        kernel._socket.sendall(request(Opcode.LOOKUP, b"nothing\0", 1000))
        assert kernel.ask(Opcode.ACCESS, b"") == (errno.EINVAL, b"")
        goes_on.set()
        assert protocol.OUT_HEADER.read(kernel._socket.recv(1000)).unique == 1000
        kernel.close()


def test_nobody_keeps_the_turn_for_long(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    def waits_and_does_not_say_so(_: Request) -> bytes:
        goes_on.wait(20)
        return b""

    assert kernel.ask(Opcode.STATFS)[0] == 0  # now there is a thread that waits for its turn
    monkeypatch.setattr(kernel.loop, "_kept_seconds", 0.01)
    monkeypatch.setitem(kernel.loop._operations._methods, int(Opcode.GETATTR), waits_and_does_not_say_so)
    kernel._socket.sendall(request(Opcode.GETATTR, b"", 1000))
    assert kernel.ask(Opcode.ACCESS, b"") == (errno.EINVAL, b"")
    goes_on.set()
    assert protocol.OUT_HEADER.read(kernel._socket.recv(1000)).unique == 1000


def test_in_a_quiet_mount_it_is_looked_less_often_who_keeps_the_turn(kernel: Kernel) -> None:
    other = loop.Loop(-1, kernel.loop._operations, kernel.the.vfs.calls)  # whose threads nobody has started
    other._answered_at = time.monotonic() + 60.0
    assert other._look_seconds() == loop.KEPT_SECONDS < loop.QUIET_SECONDS
    other._answered_at -= 120.0
    assert other._look_seconds() == loop.QUIET_SECONDS


def test_who_cannot_read_leaves_the_turn_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    readv, failed = os.readv, threading.Event()

    def fails_once(descriptor: int, buffers: Any) -> int:
        if failed.is_set():
            return readv(descriptor, buffers)
        failed.set()
        raise OSError(errno.EIO, "it cannot be read")

    before = set(threading.enumerate())

    with Stack(tmp_path) as stack:
        kernel = Kernel(stack)
        assert kernel.ask(Opcode.STATFS)[0] == 0

        def are_counted() -> bool:
            with kernel.loop._lock:
                serving = {thread for thread in threading.enumerate() if thread.name == "fuse"}
                return len(serving - before) == kernel.loop._threads

        with caplog.at_level(logging.CRITICAL), monkeypatch.context() as patched:
            patched.setattr(os, "readv", fails_once)
            assert kernel.ask(Opcode.STATFS)[0] == 0  # by who was reading already
            kernel.loop.ended.get(timeout=20)
            assert kernel.ask(Opcode.STATFS)[0] == 0
        wait_until(are_counted)
        kernel.close()


def test_who_takes_back_what_came_late_lets_others_read(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    monkeypatch.setattr(kernel.the.vfs._names._lifetime, "slack_seconds", 0.0)
    monkeypatch.setattr(kernel.the.beliefs, "take_back", lambda _: did.append("takes back"))
    kernel.the._telling.note(1)
    turns.keep(lambda: did.append("passes on"))
    kernel.the.written()
    assert did == ["passes on", "takes back"]


def test_who_drops_pages_lets_others_bring_them(kernel: Kernel) -> None:
    passed: list[None] = []
    turns.keep(lambda: passed.append(None))
    kernel.the.notifications.drop_attributes(1)
    assert not passed
    kernel.the.notifications.drop(1, ALL)
    assert passed
    assert [kernel.notified()[0] for _ in range(2)] == [Notify.INVAL_INODE] * 2


def test_who_waits_for_content_lets_others_read(kernel: Kernel) -> None:
    ino, number = kernel.create(b"fetched")
    kernel.ask(Opcode.WRITE, protocol.WRITE_IN.pack(number, 0, 5, 0, 0, os.O_RDWR, 0) + b"bytes", ino)
    kernel.ask(Opcode.FLUSH, protocol.FLUSH_IN.pack(number, 0, 0, 0), ino)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0), ino)
    vfs, passed, buffer = kernel.the.vfs, list[None](), bytearray(5)
    vfs.drop_clean_copies()
    opened = vfs.open_path([b"fetched"], os.O_RDONLY, None).number
    turns.keep(lambda: passed.append(None))
    assert vfs.read_into(opened, 0, memoryview(buffer)) == len(buffer)
    assert (bytes(buffer), passed) == (b"bytes", [None])
    turns.keep(lambda: passed.append(None))
    assert vfs.read_into(opened, 0, memoryview(buffer)) == len(buffer)
    assert passed == [None]
    turns.keep(None)
    vfs.release(opened)


@pytest.mark.parametrize(("in_memory", "passes"), [(9, 0), (2, 1), (0, 1)])
def test_who_waits_for_the_disk_lets_others_read(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, in_memory: int, passes: int
) -> None:
    _, number = kernel.create(b"on disk %d" % in_memory)
    vfs, preadv, buffer = kernel.the.vfs, os.preadv, memoryview(bytearray(9))
    assert vfs.write(number, 0, b"bytes") == 5

    def as_if(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if not flags:
            return preadv(descriptor, buffers, offset)
        if offset >= in_memory:
            raise BlockingIOError(errno.EAGAIN, "it is on the disk")
        return preadv(descriptor, [buffers[0][: in_memory - offset]], offset)

    passed: list[None] = []
    turns.keep(lambda: passed.append(None))
    monkeypatch.setattr(os, "preadv", as_if)
    assert vfs.read_into(number, 0, buffer) == 5
    turns.keep(None)
    assert (bytes(buffer), len(passed)) == (b"bytes" + bytes(4), passes)
    kernel.ask(Opcode.RELEASE, protocol.RELEASE_IN.pack(number, 0, 0, 0))
