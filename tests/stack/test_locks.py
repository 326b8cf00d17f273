"""One writer a file: who waits is let in, and who loses the lock loses nothing else."""

import errno
import os
import threading
import time

import pytest
from sqlalchemy import select, update

from mount import locks
from mount.nodes import Node
from mount.vfs import Changes
from servers.directory.collection import forget_holds
from servers.directory.schema import holds
from tests.support.stack import Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import MAKE, READ, WRITE, lose_locks, raises
from wire.errors import Busy
from wire.messages.directory import ROOT_INO


def test_one_writer(pair: tuple[Client, Client], place: str) -> None:
    one, two = pair
    handle = one.open(f"{place}/file", MAKE)
    with pytest.raises(Busy, match="alice"):
        two.open(f"{place}/file", WRITE)
    with raises(errno.EWOULDBLOCK):
        two.open(f"{place}/file", WRITE | os.O_NONBLOCK)
    with raises(errno.EBUSY):
        two.set(f"{place}/file", Changes(size=1))
    assert two.read(f"{place}/file") == b""
    one.close_handle(handle)
    two.write(f"{place}/file", b"now")


def test_who_waits_is_let_in_when_the_other_closes(stack: Stack) -> None:
    one, two = stack.client(), stack.client(lock_wait_seconds=20.0)
    handle = one.open("/file", MAKE)
    one.vfs.write(handle, 0, b"one")
    done = threading.Event()

    def append() -> None:
        two.append("/file", b" two")
        done.set()

    waiter = threading.Thread(target=append)
    waiter.start()
    wait_until(lambda: any(lock.queue for lock in stack.lock.service.locks().locks))
    assert not done.is_set()
    one.close_handle(handle)
    waiter.join(10)
    assert done.is_set()
    assert one.read("/file") == b"one two"


def test_an_open_that_must_not_block_waits_for_a_close_that_is_under_way(stack: Stack) -> None:
    """truncate(1) opens so, and the command before it may have been on another machine."""
    one, two = stack.client(), stack.client()
    handle = one.open("/file", MAKE)
    one.vfs.flush(handle)
    closing = threading.Timer(0.1, one.vfs.release, [handle])
    closing.start()
    with two.opened("/file", WRITE | os.O_NONBLOCK) as other:
        two.vfs.write(other, 0, b"two")
    closing.join()
    assert one.read("/file") == b"two"


def test_a_lost_lock_is_taken_again_if_nobody_wrote(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    with one.opened("/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"before")
        lose_locks(stack, one)
        one.vfs.write(handle, 6, b" after")
        assert stack.lock_holders()[one.walk("/file").ino] == one.proxy.keyring.session.session
    assert two.read("/file") == b"before after"
    assert one.names() == ["file"]


def test_a_lock_lost_unheard_is_taken_again_at_the_commit(stack: Stack) -> None:
    one, two = stack.client(), stack.client()
    with one.opened("/file", MAKE) as handle:
        one.vfs.write(handle, 0, b"content")
        stack.advance_locks()
        with two.opened("/file", READ) as reading:  # looks, and does not write
            assert two.pread(reading, 0, 10) == b""
        with two.opened("/file", WRITE):  # raises the mark, and writes nothing
            pass
    assert two.walk("/file", fresh=True).size == 7
    assert one.names() == ["file"]


def test_a_lock_that_ended_while_it_waited_to_be_given_back_is_asked_for_anew(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FRESH_RELEASE_SECONDS", 3600.0)
    one, two = stack.client(), stack.client()
    one.write("/file", b"one")
    stack.advance_locks()
    two.append("/file", b" two")
    one.append("/file", b" three")
    assert two.read("/file") == b"one two three"


def test_what_is_open_without_a_name_is_held_again_and_again(stack: Stack) -> None:
    one = stack.client()
    one.write("/held", b"content")
    with one.opened("/held", os.O_RDONLY) as handle:
        ino = one.walk("/held").ino
        one.unlink("/held")
        database = stack.directory._database
        database.write(lambda connection: connection.execute(update(holds).values(at=0.0)))
        one.proxy.on_renewal()
        database.write(lambda connection: forget_holds(connection, time.time()))
        with database.read() as connection:
            assert connection.scalars(select(holds.c.ino)).all() == [ino]
        assert one.pread(handle, 0, 10) == b"content"


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_closed_while_it_loses_its_name_is_held_no_longer(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """Who takes the name away has found it open; who closes it has found that it has a name."""
    one = stack.client()
    one.write("/file", b"content")
    handle = one.open("/file", os.O_RDONLY)
    has_open, unpin = one.vfs._has_open, one.vfs._table.unpin

    def closed_next(ino: int) -> bool:
        found = has_open(ino)
        one.vfs.release(handle)
        return found

    def unlinked_before(node: Node) -> bool:
        one.unlink("/file")
        return unpin(node)

    with monkeypatch.context() as patched:
        if is_first:
            patched.setattr(one.vfs, "_has_open", closed_next)
            one.unlink("/file")
        else:
            patched.setattr(one.vfs._table, "unpin", unlinked_before)
            one.vfs.release(handle)
    with stack.directory._database.read() as connection:
        assert connection.scalars(select(holds.c.ino)).all() == []


def test_numbers_that_were_not_used_for_long_are_given_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stack.client()
    one.write("/first", b"")
    stock = one.proxy.write_locks._stock
    # The answer that fills it may be on its way, and the first file's lock on its way back.
    wait_until(lambda: stock and {lock.ino for lock in list(stock)} == set(stack.lock_holders()))
    before = set(stack.lock_holders())
    monkeypatch.setattr(locks, "STOCK_SECONDS", -1.0)
    one.proxy.write_locks._give_up_old_stock()
    monkeypatch.undo()
    wait_until(lambda: stack.lock_holders() and not before & set(stack.lock_holders()))
    one.write("/second", b"2")
    assert one.walk("/second").ino not in before


def test_numbers_and_locks_of_files_that_could_not_be_made_are_used_again(
    pair: tuple[Client, Client], place: str
) -> None:
    one, _ = pair
    one.write(f"{place}/file", b"")
    for _ in range(locks.STOCK + 5):
        with raises(errno.EEXIST):
            one.open(f"{place}/file", MAKE | os.O_EXCL)
    assert one.walk(place).ino != ROOT_INO


def test_who_waited_for_the_lock_when_it_was_ours_before_keeps_nobody_waiting(stack: Stack) -> None:
    one = stack.client()
    one.write("/file", b"content")
    wait_until(lambda: one.walk("/file").ino not in stack.lock_holders())
    one.proxy.write_locks._wanted = frozenset({one.walk("/file").ino})  # as a renewal had told
    with one.opened("/file", WRITE), one.opened("/file", WRITE | os.O_NONBLOCK):
        pass
