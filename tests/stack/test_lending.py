"""Whole mounts, but for the kernel: what is written past them, through the file of a local copy."""

import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mount import following, turns
from mount.nodes import Node
from mount.vfs import Changes
from tests.support.stack import Client, Stack
from tests.support.vfs import BASE, BOTH, lose_locks, raises
from wire.errors import fail
from wire.limits import CHUNK_BYTES
from wire.messages.directory import ChunkAt


def node_of(client: Client, handle: int) -> Node:
    return client.vfs._table.handle(handle).node


@contextmanager
def lent(client: Client, handle: int, flags: int = os.O_WRONLY) -> Iterator[int]:
    """As the kernel has the file of an open handle."""
    descriptor = node_of(client, handle).copy.lend(flags)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_what_was_written_past_us_is_shown_and_committed(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, b"content", CHUNK_BYTES)
        shown = one.vfs.handle_attr(handle)
        assert shown.size == CHUNK_BYTES + 7
        assert abs(shown.mtime - time.time_ns()) < 10**10
        one.vfs.flush(handle)
        assert two.read("/file") == bytes(CHUNK_BYTES) + b"content"
        os.pwrite(descriptor, b"C", CHUNK_BYTES)
    one.vfs.release(handle)
    assert two.read("/file") == bytes(CHUNK_BYTES) + b"Content"
    assert not one.vfs.unsaved()
    assert one.copies._index.dirty_inos() == []


def test_a_time_that_is_set_after_writing_past_us_is_kept(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    ino = node_of(one, handle).ino
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, b"content", 0)
        one.vfs.setattr(ino, Changes(mtime=10**18), None, handle)
        assert one.vfs.handle_attr(handle).mtime == 10**18
    one.close_handle(handle)
    assert two.walk("/file", fresh=True).mtime == 10**18


def test_a_write_past_us_comes_after_what_the_same_tick_of_the_kernels_clock_saw(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    with lent(one, handle) as descriptor:
        one.vfs.write(handle, 0, b"through")
        tick = one.vfs.handle_attr(handle).mtime - 10**6
        for data in (b"past", b"past us"):
            before = one.vfs.handle_attr(handle)
            os.pwrite(descriptor, data, 0)
            os.utime(descriptor, ns=(tick, tick))
            after = one.vfs.handle_attr(handle)
            assert (after.mtime, after.ctime) > (before.mtime, before.ctime)
            assert one.vfs.handle_attr(handle).mtime == after.mtime
            node_of(one, handle).rescan()
            assert one.vfs.handle_attr(handle).mtime == after.mtime
    one.close_handle(handle)
    assert two.walk("/file", fresh=True).mtime == after.mtime


def test_a_close_moves_no_time_of_what_was_set_and_then_written_past_us(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        one.set("/file", Changes(atime=10**18, mtime=10**18))
        os.pwrite(descriptor, b"past us", 0)
        before = one.vfs.handle_attr(handle)
    one.close_handle(handle)
    after = two.walk("/file", fresh=True)
    assert (after.mtime, after.ctime) == (before.mtime, before.ctime)


def test_what_is_written_past_us_replaces_an_early_upload(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    one.vfs.write(handle, 0, b"a" * CHUNK_BYTES)
    assert list(node_of(one, handle).uploaded) == [0]
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, b"b", 0)
    one.close_handle(handle)
    assert two.read("/file") == b"b" + b"a" * (CHUNK_BYTES - 1)


def test_appending_through_us_goes_behind_what_was_written_past_us(stack: Stack) -> None:
    one = stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", os.O_RDWR | os.O_APPEND)
    with lent(one, handle, BOTH) as descriptor:
        os.pwrite(descriptor, b"past", len(BASE))
        one.vfs.write(handle, 0, b"through")
        assert os.pread(descriptor, 99, len(BASE)) == b"pastthrough"
    one.close_handle(handle)
    assert one.read("/file") == BASE + b"pastthrough"


@pytest.mark.parametrize("flags", [os.O_RDONLY, BOTH])
def test_who_reads_past_us_gets_the_version_that_is_opened(stack: Stack, flags: int) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE * 1000)
    reader = one.open("/file", os.O_RDONLY)
    with lent(one, reader, os.O_RDONLY) as descriptor:
        shown = mmap.mmap(descriptor, 100, prot=mmap.PROT_READ)
        two.write("/file", b"NEW")
        assert shown[:4] == BASE[:4], "nobody has asked for it"
        later = one.open("/file", flags)
        assert os.pread(descriptor, 99999, 0) == b"NEW" + (BASE * 1000)[3:]
        assert shown[:4] == b"NEW" + BASE[3:4]
        assert os.fstat(descriptor).st_ino == node_of(one, later).copy.file_number
        shown.close()
    one.close_handle(later)
    one.close_handle(reader)


def test_who_asks_for_attributes_sees_the_file_grow_that_is_read_past_us(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", os.O_RDONLY)
    with lent(one, handle, os.O_RDONLY) as descriptor:
        appending = two.open("/file", os.O_WRONLY)
        two.vfs.write(appending, len(BASE), b"more")
        two.close_handle(appending)
        assert one.vfs.fresh_attr(node_of(one, handle).ino, None).size == len(BASE) + 4
        assert os.pread(descriptor, 99, len(BASE)) == b"more"
    one.close_handle(handle)


def test_what_cannot_be_fetched_leaves_the_old_version_as_it_was(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", os.O_RDONLY)
    node = node_of(one, handle)
    with lent(one, handle, os.O_RDONLY) as descriptor:
        two.write("/file", b"NEW, and longer than before, and longer")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(one.proxy, "download", no_server)
            for flags in (os.O_RDONLY, BOTH):
                with raises(errno.EIO):
                    one.open("/file", flags)
            attempts = no_server.count
            for _ in range(2):
                assert one.vfs.fresh_attr(node.ino, None).size == len(BASE)
            assert no_server.count == attempts + 1, "who only looks does not wait twice"
            assert os.pread(descriptor, 99, 0) == BASE
            assert one.proxy.write_locks.held(node.ino) is None
        assert one.read("/file") == b"NEW, and longer than before, and longer" == os.pread(descriptor, 99, 0)
    one.close_handle(handle)


class NoServer:
    """In place of a download."""

    count = 0

    def __call__(self, _chunk: ChunkAt) -> bytes:
        self.count += 1
        raise fail(errno.EIO)


no_server = NoServer()


def test_readers_are_left_with_the_old_version_if_too_much_has_changed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", os.O_RDONLY)
    with lent(one, handle, os.O_RDONLY) as descriptor:
        two.write("/file", b"NEW")
        monkeypatch.setattr(following, "FOLLOW_BYTES_MAX", len(BASE) - 1)
        assert one.read("/file") == b"NEW" + BASE[3:]
        assert os.pread(descriptor, 9999, 0) == BASE
        assert os.fstat(descriptor).st_ino != node_of(one, handle).copy.file_number
    one.close_handle(handle)


def test_many_that_open_at_once_bring_a_version_once(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", os.O_RDONLY)
    with lent(one, handle, os.O_RDONLY) as descriptor:
        two.write("/file", b"NEW")
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: one.read("/file"), range(16)))
        assert set(found) == {b"NEW" + BASE[3:]} == {os.pread(descriptor, 9999, 0)}
    one.close_handle(handle)


def test_who_waits_for_another_to_bring_a_version_lets_requests_be_read(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", os.O_RDONLY)
    node, passed = node_of(one, handle), threading.Event()

    def follow() -> None:
        turns.keep(passed.set)
        one.vfs._follower.follow(node, attr, None)

    with lent(one, handle, os.O_RDONLY) as descriptor, ThreadPoolExecutor(1) as threads:
        two.write("/file", b"NEW")
        attr = two.walk("/file")
        with node.following.turn():
            following = threads.submit(follow)
            assert passed.wait(20)
        following.result()
        assert os.pread(descriptor, 3, 0) == b"NEW"
    one.close_handle(handle)


@pytest.mark.parametrize("is_told", [True, False])
def test_what_was_written_past_us_without_the_lock_becomes_a_conflict_copy(
    stack: Stack, is_told: bool
) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", BOTH)
    with lent(one, handle, BOTH) as descriptor:
        os.pwrite(descriptor, b"LOSER", 0)
        stack.advance_locks()
        two.write("/file", b"winner")
        if is_told:
            lose_locks(stack, one)
            assert one.read("/file") == b"LOSER" + BASE[5:], "what is dirty is ours until it is settled"
        with raises(errno.ESTALE):
            one.vfs.flush(handle)
        os.pwrite(descriptor, b"of no avail", 0)
        with raises(errno.ESTALE):
            one.vfs.flush(handle)
    one.vfs.release(handle)
    [copy] = [name for name in one.names() if name != "file"]
    assert two.read(f"/{copy}") == b"LOSER" + BASE[5:]
    assert one.read("/file") == two.read("/file") == b"winner" + BASE[6:]
    assert not one.vfs.unsaved()


def test_who_goes_on_through_us_without_the_lock_loses_nothing_written_past_us(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", BOTH)
    with lent(one, handle, BOTH) as descriptor:
        stack.advance_locks()
        two.write("/file", b"winner")
        lose_locks(stack, one)
        os.pwrite(descriptor, b"LOSER", 0)
        with raises(errno.ESTALE):
            one.vfs.write(handle, 0, b"x")
        with raises(errno.ESTALE):
            one.vfs.flush(handle)
    one.vfs.release(handle)
    [copy] = [name for name in one.names() if name != "file"]
    assert two.read(f"/{copy}") == b"LOSER" + BASE[5:]
    assert one.read("/file") == b"winner" + BASE[6:]


def test_a_killed_mount_leaves_what_was_written_past_it(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", b"acknowledged")
    with lent(one, one.open("/file", BOTH), BOTH) as descriptor:
        os.pwrite(descriptor, b"UNSAVED", 0)
        one.kill()
    again = stack.client(one.cache, started=False)
    again.recovery.run()
    again.start()
    assert two.read("/file") == b"acknowledged"
    [kept] = [name for name in two.names() if name != "file"]
    assert two.read(f"/{kept}") == b"UNSAVEDedged"


def test_a_killed_mount_that_only_lent_leaves_nothing(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", b"acknowledged")
    with lent(one, one.open("/file", BOTH), BOTH):
        one.kill()
    again = stack.client(one.cache, started=False)
    with caplog.at_level(logging.INFO):
        again.recovery.run()
    assert "nothing was written" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    again.start()
    assert two.names() == ["file"]
    assert again.vfs.unsaved() == []
    assert again.read("/file") == b"acknowledged"


def test_everything_is_written_back_also_what_was_written_past_us(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, b"content", 0)
        one.vfs.write_back_all()
        assert two.read("/file") == b"content"
        os.pwrite(descriptor, b"C", 0)
        reader = one.open("/file", os.O_RDONLY)
        one.vfs.fsync(reader)
        assert two.read("/file") == b"Content"
    one.close_handle(handle)
    one.close_handle(reader)


def test_writing_the_same_again_is_a_change_of_time(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    before = two.walk("/file", fresh=True)
    handle = one.open("/file", os.O_WRONLY)
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, BASE, 0)
    one.close_handle(handle)
    assert two.walk("/file", fresh=True).mtime > before.mtime
    assert two.read("/file") == BASE


def test_a_hole_that_is_written_past_us_is_not_uploaded_early(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    handle = one.open("/file", os.O_WRONLY | os.O_CREAT)
    node = node_of(one, handle)
    with lent(one, handle) as descriptor:
        os.pwrite(descriptor, b"x" * CHUNK_BYTES, 2**40)
        one.vfs._committer.uploads._look(node)
        assert list(node.uploaded) == [2**40 // CHUNK_BYTES]
    one.close_handle(handle)
    assert two.walk("/file", fresh=True).size == 2**40 + CHUNK_BYTES
