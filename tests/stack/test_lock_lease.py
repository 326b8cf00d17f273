"""A mount keeps its locks under whatever lease the lock server has, from the first lock on.

The lock server's clock goes on by most of a lease with each renewal, and stands in between: however busy the
machine is, no lease ends. A mount that renews by a lease of its own is too slow for those who wait here.
"""

import os
import time
from collections.abc import Callable, Mapping

from tests.support.stack import LOCK, Client, Stack
from tests.support.times import Clock, wait_until
from tests.support.vfs import MAKE, READ
from wire.limits import LOCK_LEASE_SECONDS
from wire.messages.lock import Range

SHORT = 0.2
RENEWALS = 12
"""By a lease of 15 s they would take 45 s: longer than anybody waits here."""

SHARED = Range(True, 1, 0, 2**63 - 1, False, 1)


def before_each_renewal(stack: Stack, act: Callable[[], object]) -> None:
    """Calls ``act`` when one is sent, and has not arrived: at that moment nobody asks the lock server."""

    def look(url: str, _headers: Mapping[str, str]) -> None:
        if url == f"{LOCK}/v1/locks/renew":
            act()

    stack.wire.before.append(look)


def shorten(stack: Stack) -> Callable[[], None]:
    """The lock server begins again, with a short lease. Returns what waits until many of them are over."""
    clock, renewals = Clock(), 0
    clock.now = time.time()

    def pass_time() -> None:
        nonlocal renewals
        renewals += 1
        clock.now += 0.9 * SHORT
        stack.lock.service.expire()

    def many_pass() -> None:
        enough = renewals + RENEWALS
        wait_until(lambda: renewals >= enough)

    stack.restart_lock(lease_seconds=SHORT, clock=clock)
    before_each_renewal(stack, pass_time)
    return many_pass


def token(stack: Stack, ino: int) -> int:
    """Under which somebody has the lock of ``ino``; 0 if nobody has."""
    return next((lock.token for lock in stack.lock.service.locks().locks if lock.ino == ino), 0)


def ranged(stack: Stack) -> list[int]:
    """The inodes of which programs have locks."""
    return [info.ino for info in stack.lock.service.locks().ranges]


def hold(stack: Stack, client: Client) -> tuple[int, int]:
    """Makes ``/file`` and leaves it open: its inode and the token of its lock."""
    ino = client.vfs.inode_of(client.open("/file", MAKE))
    wait_until(lambda: len(stack.lock_holders()) > RENEWALS)  # the stock: nothing more is asked for
    return ino, token(stack, ino)


def test_the_first_lock_is_kept_under_a_short_lease(stack: Stack) -> None:
    many_pass = shorten(stack)
    one = stack.client()
    ino, first = hold(stack, one)
    assert one.proxy.lock.lease.seconds == SHORT
    many_pass()
    assert token(stack, ino) == first


def test_the_first_lock_of_a_program_is_kept_under_a_short_lease(stack: Stack) -> None:
    maker = stack.client()
    maker.write("/file", b"")
    maker.close()
    many_pass, one = shorten(stack), stack.client()
    with one.opened("/file", os.O_RDONLY) as handle:
        assert one.vfs.lock(handle, SHARED, waits=False).conflict is None
        assert one.proxy.lock.lease.seconds == SHORT
        many_pass()
        assert ranged(stack) == [one.vfs.inode_of(handle)]


def test_a_worker_keeps_the_locks_of_the_one_before_under_a_short_lease(stack: Stack) -> None:
    many_pass, first = shorten(stack), stack.client()
    ino, before = hold(stack, first)
    first.write("/other", b"")
    other = first.open("/other", READ)
    assert first.vfs.lock(other, SHARED, waits=False).conflict is None
    first.kill()
    stack.client(before=first)
    many_pass()
    assert (token(stack, ino), ranged(stack)) == (before, [first.vfs.inode_of(other)])


def test_a_lock_server_that_begins_again_with_another_lease_is_followed(stack: Stack) -> None:
    one = stack.client()
    ino, first = hold(stack, one)
    many_pass = shorten(stack)
    one.proxy.write_locks._renew()
    assert one.proxy.lock.lease.seconds == SHORT
    many_pass()
    is_long = False

    def begin_again() -> None:
        nonlocal is_long
        if not is_long:
            is_long = True
            stack.restart_lock(lease_seconds=LOCK_LEASE_SECONDS)

    before_each_renewal(stack, begin_again)
    wait_until(lambda: one.proxy.lock.lease.seconds == LOCK_LEASE_SECONDS)
    assert token(stack, ino) == first
