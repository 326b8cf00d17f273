"""Who lost his lock to another writer: his content becomes a conflict copy, and is nobody's but his."""

import errno
import os
import stat
from collections.abc import Callable

import pytest

from mount.vfs import Changes
from tests.support.stack import Client, Stack
from tests.support.vfs import (
    BASE,
    BORDER,
    BOTH,
    WatchedWire,
    lose_locks,
    raises,
)
from wire.errors import Conflict, fail


def test_who_lost_the_lock_and_the_leave_to_write_gets_a_conflict_copy(stack: Stack) -> None:
    """Only while the lock is held does the leave last that was given at the open."""
    alice, bob = stack.client(), stack.client(user="bob", uid=10002, gids=(10002,))
    alice.write("/file", BASE)
    alice.set("/file", Changes(mode=0o666))
    handle = bob.open("/file", BOTH)
    bob.vfs.write(handle, 0, b"LOSER")
    alice.set("/file", Changes(mode=0o644))
    bob.vfs.flush(handle)
    assert alice.read("/file") == b"LOSER" + BASE[5:]
    bob.vfs.write(handle, 0, b"AGAIN")
    lose_locks(stack, bob)
    with raises(errno.ESTALE):
        bob.vfs.flush(handle)
    bob.vfs.release(handle)
    copy = max(bob.names(), key=len)
    assert (bob.read(f"/{copy}"), bob.read("/file")) == (b"AGAIN" + BASE[5:], b"LOSER" + BASE[5:])
    alice.write("/file", b"mine")
    assert alice.read("/file")[:4] == b"mine"


@pytest.mark.parametrize("is_told", [True, False])
def test_who_lost_the_lock_to_a_writer_gets_a_conflict_copy(stack: Stack, is_told: bool) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    handle = one.open("/file", BOTH)
    one.vfs.write(handle, 0, b"LOSER")
    stack.advance_locks()
    two.write("/file", b"winner")
    if is_told:
        lose_locks(stack, one)
        with pytest.raises(Conflict):
            one.vfs.write(handle, 0, b"x")
    for _ in range(2):
        with raises(errno.ESTALE):
            one.vfs.flush(handle)
    with raises(errno.ESTALE):
        one.vfs.write(handle, 0, b"x")
    one.vfs.release(handle)
    [copy] = [name for name in one.names() if name != "file"]
    assert copy.startswith("file (conflict alice@")
    assert two.read(f"/{copy}") == b"LOSER" + BASE[5:]
    assert one.read("/file") == two.read("/file") == b"winner" + BASE[6:]
    one.write("/file", b"again")
    assert two.read("/file") == b"againr" + BASE[6:]
    assert not one.vfs.unsaved()


def lose(loser: Client, path: str, stack: Stack, do: Callable[[], object]) -> int:
    """Writes through a handle of ``loser``'s; then somebody else does something to the file, and its lock is
    lost. The handle, whose next flush makes a conflict copy."""
    handle = loser.open(path, BOTH)
    loser.vfs.write(handle, 0, b"LOSER")
    stack.advance_locks()
    do()
    return handle


@pytest.mark.parametrize("holds", [True, False])
def test_a_conflict_copy_of_a_version_that_is_not_retained(
    stack: Stack, caplog: pytest.LogCaptureFixture, holds: bool
) -> None:
    """What is here of the base is uploaded, what is nowhere becomes a hole, and the changes are kept."""
    one, two = stack.client(), stack.client()
    base = b"a" * BORDER + b"b" * 10
    two.write("/file", base)
    if holds:
        one.read("/file")

    def replace() -> None:
        with two.opened("/file", BOTH | os.O_TRUNC) as handle:
            two.vfs.write(handle, 0, b"winner")
        object.__setattr__(stack._directory_config, "retention_seconds", 0.0)
        object.__setattr__(stack._directory_config, "grace_seconds", 0.0)
        for _ in range(3):  # the version ends, its chunks are condemned, they are deleted
            stack.maintain()
        object.__setattr__(stack._directory_config, "grace_seconds", 3600.0)

    handle = lose(one, "/file", stack, replace)
    with raises(errno.ESTALE):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    [copy] = [name for name in two.names() if name != "file"]
    assert two.read(f"/{copy}") == b"LOSER" + base[5:BORDER] + (b"b" if holds else b"\0") * 10
    assert ("1 chunks of the version that was changed are neither here nor retained" in caplog.text) != holds
    assert not one.vfs.unsaved()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_conflict_copy_that_cannot_be_stored_leaves_no_name(stack: Stack, is_told: bool) -> None:
    wire = WatchedWire()
    one, two = stack.client(wrap=wire.wrap), stack.client()
    two.write("/file", BASE)
    handle = lose(one, "/file", stack, lambda: two.write("/file", b"winner"))
    if is_told:  # of its lock's loss: nothing is committed before the copy
        lose_locks(stack, one)
    lost, refused = [""] if is_told else [], list[str]()

    def full(method: str, url: str) -> None:
        """Refuses the chunks of the copy, not those of the commit that loses."""
        lost.extend([url] if url.endswith("/mutations") else [])
        if method == "PUT" and lost:
            raise fail(errno.ENOSPC)

    def refuse_the_commit(method: str, url: str) -> None:
        """Of the copy, which follows its creation; not the removal that follows the refusal."""
        if url.endswith("/mutations") and not refused and len(two.names()) == 2:
            refused.append(url)
            raise fail(errno.EDQUOT)

    for trouble, number in ((full, errno.ENOSPC), (refuse_the_commit, errno.EDQUOT)):
        wire.before = trouble
        with raises(number):
            one.vfs._committer.commit(one.vfs._handle(handle).node)
        assert two.names() == ["file"]
    assert refused
    wire.before = lambda method, url: None
    with raises(errno.ESTALE):
        one.vfs._committer.commit(one.vfs._handle(handle).node)
    one.vfs.release(handle)
    [copy] = [name for name in two.names() if name != "file"]
    assert two.read(f"/{copy}") == b"LOSER" + BASE[5:]


def test_a_conflict_copy_in_a_foreign_folder_is_private(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    two.mkdir("/private", 0o700)
    two.write("/private/file", BASE)

    def move() -> None:
        two.rename("/private/file", "/file")
        two.rmdir("/private")
        two.write("/file", b"winner")

    handle = lose(one, "/private/file", stack, move)
    with raises(errno.ESTALE):
        one.vfs.flush(handle)
    one.vfs.release(handle)
    [copy] = [name for name in two.names() if name != "file"]
    assert stat.S_IMODE(two.walk(f"/{copy}").mode) == 0o600
    assert stat.S_IMODE(two.walk("/file").mode) == 0o644


def test_who_lost_his_lock_does_not_write_over_what_he_has_not_read(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", b"5")
    with pytest.raises(OSError, match="meanwhile") as at_close, one.opened("/file", BOTH) as handle:
        assert one.pread(handle, 0, 20) == b"5"
        stack.advance_locks()
        two.write("/file", b"6")
        lose_locks(stack, one)
        with pytest.raises(OSError, match="meanwhile") as at_write:
            one.vfs.write(handle, 0, b"6")
        assert at_write.value.errno == errno.ESTALE
    assert at_close.value.errno == errno.ESTALE
    assert two.read("/file") == b"6"
    with one.opened("/file", BOTH) as handle:
        assert one.pread(handle, 0, 20) == b"6"
        one.vfs.write(handle, 0, b"7")
    assert two.read("/file") == b"7"


def test_an_idle_writer_that_lost_his_lock_keeps_no_reader_from_a_newer_version(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    one.write("/file", BASE)
    writer = one.open("/file", BOTH)
    assert one.pread(writer, 0, 100) == BASE
    stack.advance_locks()
    two.write("/file", b"winner")
    lose_locks(stack, one)
    assert one.read("/file") == two.read("/file") == b"winner" + BASE[6:]
    with raises(errno.ESTALE):
        one.vfs.write(writer, 0, b"of what it has not read")
    with raises(errno.ESTALE):
        one.close_handle(writer)
    assert two.read("/file") == b"winner" + BASE[6:]
    one.write("/file", b"again!")
    assert two.read("/file") == b"again!" + BASE[6:]
    assert one.names() == ["file"]
