"""What close and fsync promise, and what goes wrong on the way to it."""

import errno
import threading
from pathlib import Path

import pytest

from cache.sparse import SparseFile
from mount import later_commits
from mount.nodes import Node
from tests.support.stack import DIRECTORY, LOCK, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import (
    BORDER,
    GONE_SECONDS,
    MAKE,
    READ,
    WRITE,
    WatchedWire,
    lose_locks,
    raises,
)
from wire.errors import Busy, ReplyLost, fail

# What fsync covers


def test_fsync_is_about_the_file_and_not_the_handle(stack: Stack) -> None:
    one, two = stack.client(deadline_seconds=GONE_SECONDS), stack.client()
    writer = one.open("/file", MAKE)
    one.vfs.write(writer, 0, b"content")
    with one.opened("/file", READ) as reader:
        one.vfs.flush(reader)
        assert two.read("/file") == b"", "closing a reader promises nothing"
        one.vfs.fsync(reader)
        assert two.read("/file") == b"content"
        assert one.walk("/file").ino in stack.lock_holders()
        one.vfs.write(writer, 7, b" and more")
        stack.away(DIRECTORY)
        with raises(errno.ETIMEDOUT):
            one.vfs.fsync(reader)
        stack.back()
    one.vfs.release(writer)
    assert two.read("/file") == b"content and more"


class WatchedLock:
    """A lock that tells when somebody asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.asked.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_those_who_wait_for_a_commit_that_fails_make_none_of_their_own(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = WatchedWire()
    one = stack.client(wrap=wire.wrap)
    handles = [one.open("/file", MAKE)]
    handles += [one.open("/file", WRITE) for _ in range(3)]
    one.vfs.write(handles[0], 0, b"content")
    gate, attempts, errors = threading.Event(), list[str](), list[object]()

    def fail_late(method: str, url: str) -> None:
        if method == "PUT":
            attempts.append(url)
            assert gate.wait(10)
            raise fail(errno.ENETDOWN)

    def fsync(handle: int) -> None:
        with pytest.raises(OSError) as error:
            one.vfs.fsync(handle)
        errors.append(error.value.errno)

    wire.before = fail_late
    committing = WatchedLock()
    monkeypatch.setattr(one.vfs._handle(handles[0]).node, "committing", committing)
    threads = [threading.Thread(target=fsync, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
        assert committing.asked.acquire(timeout=10)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4
    assert len(attempts) == 2, "one attempt, at two servers"
    wire.before = lambda method, url: None
    for handle in handles:
        one.vfs.release(handle)
    assert not one.vfs.unsaved()


# What goes wrong on the way


def test_a_reader_of_a_new_version_does_not_wait_for_the_old_one(stack: Stack) -> None:
    wire = WatchedWire()
    one, two = stack.client(wrap=wire.wrap), stack.client()
    two.write("/file", b"old")
    seen, gate, found = threading.Event(), threading.Event(), list[bytes]()
    old = ""

    def hold_back(method: str, url: str) -> None:
        nonlocal old
        if method == "GET" and "/v1/chunks/" in url:
            old = old or url.rpartition("/")[2]
            if url.endswith(old):
                seen.set()
                assert gate.wait(10)
                raise fail(errno.ENETDOWN)

    wire.before = hold_back
    early = threading.Thread(target=lambda: found.append(one.read("/file")))
    early.start()
    assert seen.wait(10)
    two.write("/file", b"new")
    assert one.read("/file") == b"new"
    gate.set()
    early.join(10)
    assert found == [b"new"], "what failed is not asked for any more"


def test_of_a_punch_that_failed_the_first_part_is_committed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stack.client(), stack.client()
    punch = SparseFile.punch

    def first_only(file: SparseFile, offset: int, size: int) -> None:
        if offset:
            raise fail(errno.EIO)
        punch(file, offset, size)

    with one.opened("/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"a" * BORDER)  # its upload begins here
        one.vfs.write(handle, BORDER, b"a" * BORDER)
        with monkeypatch.context() as patch, raises(errno.EIO):
            patch.setattr(SparseFile, "punch", first_only)
            one.vfs.punch(handle, 0, 2 * BORDER)
    assert two.read("/file") == bytes(BORDER) + b"a" * BORDER


def test_writing_back_goes_on_after_what_nobody_foresaw(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = stack.client(), stack.client()
    handles = [one.open(f"/{name}", MAKE) for name in "ab"]
    for handle in handles:
        one.vfs.write(handle, 0, b"content")
    commit = one.vfs._committer.commit

    def fail_first(node: Node) -> None:
        if node.ino == one.vfs.inode_of(handles[0]):
            raise RuntimeError("on purpose")
        commit(node)

    with monkeypatch.context() as patch:
        patch.setattr(one.vfs._committer, "commit", fail_first)
        one.vfs.write_back_all()
    assert "on purpose" in caplog.text
    caplog.clear()
    assert (two.read("/a"), two.read("/b")) == (b"", b"content")
    for handle in handles:
        one.close_handle(handle)


def test_a_torn_early_upload_is_not_committed(stack: Stack) -> None:
    """A sequential writer's chunk is uploaded while it is overwritten: the later content is committed."""
    gate, seen = threading.Event(), threading.Event()
    wire = WatchedWire()

    one, two = stack.client(wrap=wire.wrap), stack.client()

    def hold_back(method: str, url: str) -> None:
        if method == "PUT" and not seen.is_set():
            seen.set()
            assert gate.wait(10)

    with one.opened("/file", MAKE) as handle:
        wire.before = hold_back
        one.vfs.write(handle, 0, b"a" * BORDER)
        assert seen.wait(10)
        one.vfs.write(handle, 100, b"b" * 100)
        gate.set()
    assert two.read("/file") == b"a" * 100 + b"b" * 100 + b"a" * (BORDER - 200)


def test_chunks_that_the_directory_has_condemned_are_uploaded_again(tmp_path: Path) -> None:
    """No receipt is believed at first: what the commit names is not known."""
    with Stack(tmp_path, grace_seconds=0.0, retention_seconds=0.0) as stack:
        wire = WatchedWire()

        one, two = stack.client(wrap=wire.wrap), stack.client()
        rounds: list[str] = []

        def forget(method: str, url: str) -> None:
            if method == "PUT":
                rounds.append(url)
                if len(rounds) == 3:
                    object.__setattr__(stack._directory_config, "grace_seconds", 3600.0)

        wire.before = forget
        with one.opened("/file", MAKE) as handle:
            one.vfs.write(handle, 0, b"a" * (BORDER + 5))
        assert len(rounds) == 4
        assert two.read("/file") == b"a" * (BORDER + 5)


def commit_unheard(one: Client, wire: WatchedWire) -> int:
    """A handle of a new file, whose content is committed; but of that the client has heard nothing."""

    def lose(method: str, url: str) -> None:
        if url.endswith("/v1/mutations"):
            raise ReplyLost("on purpose")

    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    wire.after = lose
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    wire.after = lambda method, url: None
    return handle


@pytest.mark.parametrize("later", [b"", b" later"])
def test_a_commit_whose_answer_was_lost_for_good(stack: Stack, later: bytes) -> None:
    wire = WatchedWire()
    one = stack.client(wrap=wire.wrap, deadline_seconds=GONE_SECONDS)
    two = stack.client()
    handle = commit_unheard(one, wire)
    assert two.read("/file") == b"content"
    if later:
        one.vfs.release(handle)
        wait_until(lambda: not one.vfs.unsaved())
        one.append("/file", later)
    else:
        with raises(errno.ETIMEDOUT):
            one.vfs.flush(handle)
        one.vfs.release(handle)
    assert not one.vfs.unsaved()
    assert two.read("/file") == one.read("/file") == b"content" + later
    assert one.names() == ["file"]


def test_a_commit_found_after_its_lock_was_lost(stack: Stack) -> None:
    """Its answer is lost, then its lease: the directory is asked for the commit, and the work goes on."""
    wire = WatchedWire()
    one = stack.client(wrap=wire.wrap, deadline_seconds=GONE_SECONDS)
    two = stack.client()
    handle = commit_unheard(one, wire)
    lose_locks(stack, one)
    two.append("/file", b" and more")
    one.vfs.release(handle)
    assert not one.vfs.unsaved()
    assert one.read("/file") == two.read("/file") == b"content and more"
    assert one.walk("/file").size == 16
    assert one.names() == ["file"]


def test_what_a_close_could_not_write_is_written_when_the_servers_are_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(later_commits, "RETRY_SECONDS", (0.05,))
    one, two = stack.client(deadline_seconds=GONE_SECONDS), stack.client()
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    for url in ("http://files1", "http://files2"):
        stack.away(url)
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    with raises(errno.ETIMEDOUT):
        one.vfs.write(handle, 0, b"x")
    one.vfs.release(handle)
    assert one.vfs.unsaved() == [one.walk("/file").ino]
    assert one.read("/file") == b"content"
    with pytest.raises(Busy):
        two.proxy.write_locks.acquire(one.walk("/file").ino, 0.0)
    stack.back()
    wait_until(lambda: not one.vfs.unsaved())
    assert two.read("/file") == b"content"
    two.append("/file", b" and more")
    assert one.read("/file") == b"content and more"


def test_fsync_covers_what_was_written_after_a_commit_that_timed_out(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that is sent again first is not all there is to commit."""
    monkeypatch.setattr(later_commits, "RETRY_SECONDS", (3600.0,))
    one, two = stack.client(deadline_seconds=GONE_SECONDS), stack.client()
    one.write("/other", b"so that it knows where chunks go")
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    stack.away(DIRECTORY)
    with raises(errno.ETIMEDOUT):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    stack.back()
    handle = one.open("/file", WRITE)
    one.vfs.write(handle, 7, b" and more")
    one.vfs.flush(handle)
    assert two.read("/file") == b"content and more"
    one.vfs.release(handle)


def test_one_dead_file_server_costs_nothing(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/a", b"a")
    stack.away("http://files1")
    one.write("/b", b"b")
    assert (two.read("/a"), two.read("/b")) == (b"a", b"b")
    stack.back()
    stack.away("http://files2")
    assert stack.client().read("/a") == b"a"


def test_services_that_are_restarted_are_only_waited_for(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"content")
    for url, server in ((LOCK, stack.lock), (DIRECTORY, stack.directory)):
        stack.away(url)
        server.close()
    closing = threading.Thread(target=one.close_handle, args=(handle,))
    closing.start()
    stack.start_directory()
    stack.start_lock()
    stack.maintain()
    closing.join(10)
    assert not closing.is_alive()
    assert two.read("/file") == b"content"
    two.append("/file", b" and more")
    assert one.read("/file") == b"content and more"
