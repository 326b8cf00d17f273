"""Programs that do not want to wait any longer: EINTR at once, and nothing is left of them in any queue."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from mount import interruption, locks
from mount.gate import Gate
from mount.ranges import PIECE_BYTES
from tests.support.stack import LOCK, Client, Stack
from tests.support.times import wait_until

READ, WRITE, MAKE = os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT
SOON_SECONDS = 3.0
"""Much less than a poll takes, and time enough for a busy machine."""

_uniques = itertools.count(2, 2)


@pytest.fixture(scope="module")
def pair(shared_stack: Stack) -> tuple[Client, Client]:
    """Two clients that are ready to wait for long."""
    return shared_stack.client(lock_wait_seconds=60.0), shared_stack.client(lock_wait_seconds=60.0)


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """Their realm, without hooks and waiters of another test."""
    assert not queue(shared_stack)
    yield shared_stack
    shared_stack.wire.before.clear()
    shared_stack.wire.after.clear()


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A file of this test's own."""
    return f"/{request.node.name}"


class Program(threading.Thread):
    """Does something that is a request of the kernel."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self.unique = next(_uniques)
        self.result: object = None
        self._do = do
        self.start()

    def run(self) -> None:
        with interruption.Call(self.unique):
            try:
                self.result = self._do()
            except OSError as error:
                self.result = errno.errorcode[error.errno or 0]

    def end(self) -> object:
        """What came of it, which is to come soon."""
        self.join(SOON_SECONDS)
        assert not self.is_alive()
        return self.result

    def waits(self) -> bool:
        """Whether it could be interrupted now."""
        call = interruption._calls.get(self.unique)
        return call is not None and call.wake is not None


def when_asking_for_locks(do: Callable[[Program], object]) -> Callable[[str, Mapping[str, str]], None]:
    """A hook of the wire that calls ``do`` with the program that asks the lock server."""

    def hook(url: str, _: Mapping[str, str]) -> None:
        program = threading.current_thread()
        if url == f"{LOCK}/v1/locks/acquire" and isinstance(program, Program):
            do(program)

    return hook


def queue(stack: Stack) -> list[int]:
    """The sessions that wait for locks."""
    return [waiter.session for lock in stack.lock.service.locks().locks for waiter in lock.queue]


def check_nobody_has(stack: Stack, ino: int) -> None:
    """Soon, as locks are given back in the background."""
    wait_until(lambda: ino not in stack.lock_holders() and not queue(stack), SOON_SECONDS)


def test_an_open_that_waits_for_another_mount(stack: Stack, pair: tuple[Client, Client], path: str) -> None:
    one, two = pair
    with one.opened(path, MAKE) as handle:
        ino = one.vfs.inode_of(handle)
        program = Program(lambda: two.open(path, WRITE))
        wait_until(lambda: queue(stack))
        assert interruption.interrupt(program.unique)
        assert program.end() == "EINTR"
        assert not queue(stack)
        assert stack.lock_holders()[ino] == one.proxy.keyring.session.session
        one.vfs.write(handle, 0, b"undisturbed")
    check_nobody_has(stack, ino)
    assert two.read(path) == b"undisturbed"
    two.write(path, b"now it is free")


def test_others_keep_their_places(stack: Stack, pair: tuple[Client, Client], path: str) -> None:
    one, two = pair
    three = stack.client(lock_wait_seconds=60.0)
    handle = one.open(path, MAKE)
    leaving = Program(lambda: two.open(path, WRITE))
    wait_until(lambda: len(queue(stack)) == 1)
    staying = Program(lambda: three.open(path, WRITE))
    wait_until(lambda: len(queue(stack)) == 2)
    assert interruption.interrupt(leaving.unique)
    assert leaving.end() == "EINTR"
    assert queue(stack) == [three.proxy.keyring.session.session]
    one.close_handle(handle)
    opened = staying.end()
    assert isinstance(opened, int)
    three.close_handle(opened)


def test_who_is_not_there_yet_or_not_any_more_is_not_known() -> None:
    unique = next(_uniques)
    assert not interruption.interrupt(unique)
    with interruption.Call(unique):
        assert not interruption.is_interrupted()
        assert interruption.interrupt(unique)
        assert interruption.interrupt(unique)
        assert interruption.is_interrupted()
        with pytest.raises(InterruptedError):
            interruption.check()
    assert not interruption.is_interrupted()
    assert not interruption.interrupt(unique)


def test_an_interruption_that_overtakes_the_request_to_the_lock_server(
    stack: Stack, pair: tuple[Client, Client], path: str
) -> None:
    """The place is left before it is taken, so it is left again."""
    one, two = pair
    asked, left = itertools.count(1), threading.Event()

    def overtake(program: Program) -> None:
        if next(asked) == 2:  # the first time he does not wait
            assert interruption.interrupt(program.unique)
            assert left.wait(10)

    def note(url: str, _: Mapping[str, str]) -> None:
        if url == f"{LOCK}/v1/locks/release":
            left.set()

    with one.opened(path, MAKE) as handle:
        ino = one.vfs.inode_of(handle)
        stack.wire.before.append(when_asking_for_locks(overtake))
        stack.wire.after.append(note)
        assert Program(lambda: two.open(path, WRITE)).end() == "EINTR"
        assert next(asked) == 3
        assert not queue(stack)
    check_nobody_has(stack, ino)


def test_a_refusal_that_is_on_its_way(
    stack: Stack, pair: tuple[Client, Client], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is kept for who asks again; he does not, and leaves it."""
    one, two = pair
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.1)
    answered = itertools.count(1)

    def interrupt(program: Program) -> None:
        if next(answered) == 2:
            assert queue(stack)
            assert interruption.interrupt(program.unique)

    with one.opened(path, MAKE) as handle:
        ino = one.vfs.inode_of(handle)
        stack.wire.after.append(when_asking_for_locks(interrupt))
        assert Program(lambda: two.open(path, WRITE)).end() == "EINTR"
        assert not queue(stack)
    check_nobody_has(stack, ino)


def test_a_grant_that_is_on_its_way(stack: Stack, pair: tuple[Client, Client], path: str) -> None:
    """The waiting was over: the file is open, and the lock is given back when it is closed."""
    one, two = pair
    granted, interrupted = threading.Event(), threading.Event()

    def hold_back(_: Program) -> None:
        if stack.lock_holders().get(ino) == two.proxy.keyring.session.session:
            granted.set()
            assert interrupted.wait(10)

    handle = one.open(path, MAKE)
    ino = one.vfs.inode_of(handle)
    stack.wire.after.append(when_asking_for_locks(hold_back))
    program = Program(lambda: two.open(path, WRITE))
    wait_until(lambda: queue(stack))
    one.close_handle(handle)
    assert granted.wait(10)
    assert interruption.interrupt(program.unique)
    interrupted.set()
    opened = program.end()
    assert isinstance(opened, int)
    assert two.vfs.write(opened, 0, b"content") == 7
    two.close_handle(opened)
    check_nobody_has(stack, ino)
    assert one.read(path) == b"content"


def test_who_waits_behind_another_program_of_his_mount(
    stack: Stack, pair: tuple[Client, Client], path: str
) -> None:
    one, two = pair
    handle = one.open(path, MAKE)
    first = Program(lambda: two.open(path, WRITE))
    wait_until(lambda: queue(stack))
    second = Program(lambda: two.open(path, WRITE))
    wait_until(second.waits)
    assert interruption.interrupt(second.unique)
    assert second.end() == "EINTR"
    assert first.is_alive()
    one.close_handle(handle)
    opened = first.end()
    assert isinstance(opened, int)
    two.close_handle(opened)


def test_who_queues_behind_another_mount_though_the_lock_is_here(
    stack: Stack, pair: tuple[Client, Client], path: str
) -> None:
    one, _ = pair
    with one.opened(path, MAKE) as handle:
        ino = one.vfs.inode_of(handle)
        one.proxy.write_locks._wanted = frozenset([ino])
        program = Program(lambda: one.open(path, WRITE))
        wait_until(program.waits)
        assert interruption.interrupt(program.unique)
        assert program.end() == "EINTR"
    check_nobody_has(stack, ino)


def test_what_is_sent_to_a_service_is_not_interrupted(
    stack: Stack, pair: tuple[Client, Client], path: str
) -> None:
    """Not even the lost lock that is taken again for it."""
    one, two = pair

    unique = next(_uniques)
    with interruption.Call(unique):
        assert interruption.interrupt(unique)
        with one.opened(path, MAKE) as handle:
            one.vfs.write(handle, 0, b"content")
            stack.advance_locks()
            write_locks = one.proxy.write_locks
            write_locks._forget([write_locks._held[one.vfs.inode_of(handle)]])
    assert two.read(path) == b"content"


def test_copying_ends_after_the_piece(pair: tuple[Client, Client]) -> None:
    one, _ = pair
    with one.opened("/source", MAKE) as source, one.opened("/target", MAKE) as target:
        one.vfs.write(source, 0, os.urandom(3 * PIECE_BYTES))
        unique = next(_uniques)
        with interruption.Call(unique):
            assert interruption.interrupt(unique)
            assert one.vfs.copy_range(source, 0, target, 0, 3 * PIECE_BYTES) == PIECE_BYTES


# The gate


def test_a_gate_lets_one_in_after_the_other() -> None:
    gate, inside, most = Gate(), [0], [0]

    def pass_through() -> None:
        for _ in range(50):
            with gate:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=pass_through) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]
    assert gate.enter(0.0, lambda: True)
    assert not gate.enter(0.0, lambda: True)
    gate.leave()
    assert not gate.enter(0.01, lambda: False)
    with gate:
        pass


def test_an_open_gate_is_open_for_who_was_interrupted() -> None:
    gate, unique = Gate(), next(_uniques)
    with interruption.Call(unique):
        assert interruption.interrupt(unique)
        assert gate.enter(10.0, lambda: True)
        with pytest.raises(InterruptedError):
            gate.enter(10.0, lambda: True)
        gate.leave()
        with gate:
            pass
