"""What a mount that was killed, or could not reach the realm, has left in its cache folder."""

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mount import recovery, turns
from mount.locks import WriteLock
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import (
    BASE,
    BOTH,
    GONE_SECONDS,
    MAKE,
    READ,
    raises,
)


def test_what_a_killed_mount_had_not_committed_becomes_a_conflict_copy(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", b"acknowledged")
    handle = one.open("/file", BOTH)
    one.vfs.write(handle, 0, b"UNSAVED")
    one.kill()
    again = stack.client(one.cache, started=False)
    again.recovery.run()
    assert again.recovery.left() == []
    again.start()
    assert two.read("/file") == b"acknowledged"
    [kept] = [name for name in two.names() if name != "file"]
    assert kept.startswith("file (conflict alice@")
    assert two.read(f"/{kept}") == b"UNSAVEDedged"
    stack.advance_locks()
    again.append("/file", b"!")
    assert two.read("/file") == b"acknowledged!"


def left_dirty(stack: Stack, paths: list[str], *, flushed: bool) -> Client:
    """A client that was killed with content that no commit had covered, while the directory was away; with
    ``flushed`` an fsync had begun a commit."""
    client = stack.client(deadline_seconds=GONE_SECONDS)
    client.write("/other", b"so that it knows where chunks go")
    handles = [client.open(path, MAKE) for path in paths]
    for handle in handles:
        client.vfs.write(handle, 0, b"content")
    stack.away(DIRECTORY)
    if flushed:
        for handle in handles:
            with raises(errno.ETIMEDOUT):
                client.vfs.flush(handle)
    client.kill()
    return client


def test_a_mount_goes_on_although_recovery_could_not(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The services are away when the mount begins. One deadline is enough to see that; when they are back
    recovery goes on by itself."""
    paths = [f"/{number}" for number in range(10)]
    two = stack.client()
    dead = left_dirty(stack, paths, flushed=True)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    began = time.monotonic()
    again.recovery.run()
    assert time.monotonic() - began < len(paths) * GONE_SECONDS / 2
    assert len(again.recovery.left()) == 10
    monkeypatch.setattr(recovery, "RETRY_SECONDS", (0.01,))
    again.start()
    stack.advance_locks()
    stack.back()
    wait_until(lambda: not again.recovery.left())
    assert [two.read(path) for path in paths] == [b"content"] * 10
    again.append("/3", b" and more")
    assert two.read("/3") == b"content and more"
    assert len(again.names()) == 11
    assert "its last commit was sent again" in caplog.text


def test_recovery_waits_for_the_lock_of_the_dead_as_long_as_their_lease_is(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.restart_lock(lease_seconds=60.0)
    dead = left_dirty(stack, ["/file"], flushed=True)
    stack.back()
    again = stack.client(dead.cache, started=False)
    acquire = again.proxy.write_locks.acquire

    def as_time_passes(ino: int, wait_seconds: float) -> WriteLock:
        stack.advance_locks(wait_seconds)
        return acquire(ino, 0.0)

    monkeypatch.setattr(again.proxy.write_locks, "acquire", as_time_passes)
    again.recovery.run()
    assert again.recovery.left() == []
    again.start()
    assert sorted(again.names()) == ["file", "other"]
    assert again.read("/file") == b"content"


def test_a_commit_that_recovery_could_not_upload_again_is_none_the_less_known_to_have_been_begun(
    stack: Stack,
) -> None:
    two = stack.client()
    dead = left_dirty(stack, ["/file"], flushed=True)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    stack.back()
    stack.advance_locks()
    for number in range(1, len(stack.files) + 1):
        stack.away(f"http://files{number}")
    again.recovery.run()
    assert len(again.recovery.left()) == 1
    stack.back()
    again.recovery.run()
    assert two.read("/file") == b"content"
    assert sorted(two.names()) == ["file", "other"]


def test_writing_everything_back_waits_for_one_deadline_when_a_service_is_away(stack: Stack) -> None:
    one = stack.client(deadline_seconds=GONE_SECONDS)
    handles = [one.open(f"/{number}", MAKE) for number in range(10)]
    for handle in handles:
        one.vfs.write(handle, 0, b"content")
    stack.away(DIRECTORY)
    began = time.monotonic()
    one.vfs.write_back_all()
    assert time.monotonic() - began < len(handles) * GONE_SECONDS / 2
    stack.back()
    one.vfs.write_back_all()
    assert not one.vfs.unsaved()
    for handle in handles:
        one.close_handle(handle)


def test_what_recovery_has_left_is_settled_before_it_is_opened(stack: Stack) -> None:
    """Nobody takes for committed what was not."""
    two = stack.client()
    two.write("/file", BASE)
    known = two.walk("/file")
    dead = left_dirty(stack, ["/file"], flushed=False)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    again.recovery.run()
    again.start()
    for flags in (READ, BOTH):
        with raises(errno.ETIMEDOUT):
            again.vfs.open(known.ino, flags, None, attr=known)
    stack.back()
    stack.advance_locks()
    assert again.read("/file") == BASE
    [copy] = [name for name in two.names() if " (conflict " in name]
    assert two.read(f"/{copy}") == b"content" + BASE[7:]
    assert again.recovery.left() == []


def test_who_waits_for_recovery_lets_requests_be_read(stack: Stack) -> None:
    dead = left_dirty(stack, ["/file"], flushed=False)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    again.start()
    stack.back()
    [ino] = again.recovery.left()
    passed = threading.Event()

    def settle() -> bool:
        turns.keep(passed.set)
        return again.recovery.settle(ino)

    with ThreadPoolExecutor(1) as threads:
        with again.recovery._found[ino].turn():
            settling = threads.submit(settle)
            assert passed.wait(20)
        assert settling.result()
    assert again.recovery.left() == []


def test_a_file_that_recovery_commits_while_it_is_opened_shows_its_new_size(stack: Stack) -> None:
    dead = left_dirty(stack, ["/file"], flushed=True)
    again = stack.client(dead.cache, started=False, deadline_seconds=GONE_SECONDS)
    again.recovery.run()
    again.start()
    stack.back()
    stack.advance_locks()
    old = again.walk("/file", fresh=True)
    again.recovery.run()
    handle = again.vfs.open(old.ino, READ, None, attr=old)
    assert again.vfs.handle_attr(handle.number).size == len(b"content")
    again.vfs.release(handle.number)


def test_two_mounts_cannot_share_a_cache_folder(stack: Stack) -> None:
    one = stack.client()
    with raises(errno.EBUSY):
        stack.client(one.cache)
