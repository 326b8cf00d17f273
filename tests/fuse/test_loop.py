"""The threads that answer the kernel: how many there are, and whose turn it is to read."""

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from mount import turns
from mount.bindings.native import loop, protocol, turn
from mount.bindings.native.loop import IDLE_MAX
from mount.bindings.native.notifications import ALL
from mount.bindings.native.protocol import Notify, Opcode
from mount.bindings.native.requests import Request
from mount.bindings.native.serving import signals_tell
from tests.support.kernel import Kernel, request
from tests.support.stack import Stack
from tests.support.times import wait_until


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


def test_no_threads_are_started_to_forget(kernel: Kernel) -> None:
    def are_all_busy() -> bool:
        with kernel.loop._guard:
            return kernel.loop._idle == 0

    with kernel.the.inodes._guard:  # so that none of them ends
        for _ in range(2 * IDLE_MAX + 2):
            kernel.ask(Opcode.FORGET, protocol.FORGET_IN.pack(1), 1 << 40)
        wait_until(are_all_busy)
    assert kernel.ask(Opcode.LOOKUP, b"nothing\0")[0] == errno.ENOENT


def counted(kernel: Kernel) -> tuple[int, int]:
    """The threads, and how many of them are at work."""
    with kernel.loop._guard:
        return kernel.loop._threads, kernel.loop._threads - kernel.loop._idle


def test_calls_that_overlap_again_and_again_start_no_threads(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overlap() -> int:
        """As many as there are threads at leisure; how many there are then."""
        with kernel.the.inodes._guard:  # so that none of them ends
            for unique in range(1000, 1000 + IDLE_MAX):
                kernel._socket.sendall(request(Opcode.GETATTR, protocol.GETATTR_IN.pack(0, 0, 0), unique))
            wait_until(lambda: counted(kernel)[1] == IDLE_MAX)
        for _ in range(IDLE_MAX):
            kernel._socket.recv(1000)
        wait_until(lambda: counted(kernel)[1] == 0)
        return counted(kernel)[0]

    monkeypatch.setattr(loop, "KEEPS", frozenset())
    monkeypatch.setattr(loop, "SPARE_SECONDS", 1000.0)
    before = overlap()
    assert before > IDLE_MAX
    assert overlap() == before
    monkeypatch.setattr(loop, "SPARE_SECONDS", 0.0)
    wait_until(lambda: overlap() == IDLE_MAX)  # each time no more end than were at work


@contextmanager
def at_work(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[None]:
    """For the length of a block so many threads answer something that takes long."""
    goes_on = threading.Event()

    def takes_long(_: Request) -> bytes:
        goes_on.wait(20)
        return b""

    with monkeypatch.context() as patched:
        patched.setitem(kernel.loop._operations._methods, int(Opcode.STATFS), takes_long)
        for unique in range(1000, 1000 + count):
            kernel._socket.sendall(request(Opcode.STATFS, b"", unique))
        wait_until(lambda: counted(kernel)[1] == count)
        yield
        goes_on.set()
        for _ in range(count):
            kernel._socket.recv(1000)
        wait_until(lambda: counted(kernel)[1] == 0)


def test_nobody_watches_while_another_thread_is_at_work(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[None] = []
    with at_work(kernel, monkeypatch, 1), monkeypatch.context() as patched:
        patched.setattr(turn, "WATCHED_SECONDS", 0.5)
        patched.setattr(os, "sched_yield", lambda: watched.append(None))
        for _ in range(3):
            assert kernel.ask(Opcode.ACCESS, b"") == (errno.EINVAL, b"")
    assert not watched


def test_a_thread_too_many_leaves_the_turn_to_others(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SPARE_SECONDS", 1000.0)
    with at_work(kernel, monkeypatch, IDLE_MAX):
        pass
    assert counted(kernel)[0] > IDLE_MAX
    monkeypatch.setattr(loop, "SPARE_SECONDS", 0.0)
    for _ in range(3):
        assert kernel.ask(Opcode.ACCESS, b"") == (errno.EINVAL, b"")
    wait_until(lambda: counted(kernel)[0] == IDLE_MAX)


def test_who_waits_for_a_service_lets_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stack(tmp_path) as stack:
        kernel, goes_on = Kernel(stack), threading.Event()
        kernel.loop._turn._kept_seconds = 1000.0
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
    monkeypatch.setattr(kernel.loop._turn, "_kept_seconds", 0.01)
    monkeypatch.setitem(kernel.loop._operations._methods, int(Opcode.GETATTR), waits_and_does_not_say_so)
    kernel._socket.sendall(request(Opcode.GETATTR, b"", 1000))
    assert kernel.ask(Opcode.ACCESS, b"") == (errno.EINVAL, b"")
    goes_on.set()
    assert protocol.OUT_HEADER.read(kernel._socket.recv(1000)).unique == 1000


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
