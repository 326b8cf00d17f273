"""The memory that outlives a worker: whatever it did last, the next one reads what fits together."""

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from mount.calls import Calls
from mount.slate import CALLS_MAX, NUMBERS_A_GENERATION, Attributes, Call, OpenFile, Slate, new_memory
from wire.messages.auth import Credential, Realm, Session
from wire.messages.common import Caller
from wire.messages.directory import Create, OpenWrite, Unlink
from wire.tickets import Role


@pytest.fixture
def memory() -> Iterator[int]:
    """Memory as a keeper makes it."""
    descriptor = new_memory()
    yield descriptor
    os.close(descriptor)


def calls_of(memory: int) -> list[Call]:
    """What the next worker reads."""
    return [call for _, call in Slate(memory).calls.items()]


class Dying(BaseException):
    """The worker is killed."""


class DyingMap(mmap.mmap):
    """Memory of a worker that is killed after ``steps`` bytes were written."""

    steps = 10**9

    def __setitem__(self, where: Any, what: Any) -> None:
        data = bytes([what]) if isinstance(what, int) else what
        first = where if isinstance(where, int) else where.start
        for at, byte in enumerate(data, first):
            if DyingMap.steps == 0:
                raise Dying
            DyingMap.steps -= 1
            super().__setitem__(at, byte)


def test_what_one_worker_writes_the_next_one_reads(memory: int) -> None:
    first = Slate(memory)
    files = [OpenFile(n, n + 10, os.O_RDWR, Caller(7, list(range(256))), True, n) for n in range(3)]
    slots = [first.handles.take(file) for file in files]
    first.handles.free(slots[1])
    first.attributes.put(first.attributes.take(Attributes(5, None, 1, None)), Attributes(5, 0o644, 2, 3))
    second = Slate(memory)
    assert [file for _, file in second.handles.items()] == [files[0], files[2]]
    assert [kept for _, kept in second.attributes.items()] == [Attributes(5, 0o644, 2, 3)]
    assert second.handles.take(files[1]) == slots[1], "what was given back is used again"


def test_each_worker_has_numbers_above_those_of_all_before(memory: int) -> None:
    firsts = [Slate(memory).first_number for _ in range(3)]
    assert firsts == [1, NUMBERS_A_GENERATION + 1, 2 * NUMBERS_A_GENERATION + 1]


def test_killed_at_any_byte_of_a_write_the_record_is_the_one_before_or_the_one_after(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slate = Slate(memory)
    before, after = Call(1, "Create", 5, 77), Call(1, "Create", 5, 77, 2**40)
    slot = slate.calls.take(before)
    monkeypatch.setattr(slate.calls, "_memory", DyingMap(memory, 0))
    seen = []
    for steps in range(100):
        DyingMap.steps = steps
        try:
            slate.calls.put(slot, after)
        except Dying:
            seen.append(calls_of(memory))
            continue
        break
    assert len(seen) > 10
    assert all(calls == [before] for calls in seen)
    assert calls_of(memory) == [after]
    DyingMap.steps = 10**9


def test_the_session_and_the_init_answer_survive(memory: int) -> None:
    slate = Slate(memory)
    assert (slate.session, slate.init_answer) == (None, None)
    credentials = [Credential(role, bytes(32), os.urandom(900)) for role in Role]
    session = Session(3, "alice", 1, list(range(256)), False, True, 3600.0, credentials)
    realm = Realm("realm", bytes(32), "http://directory", "http://lock")
    slate.keep_session(realm, session, 1.0)
    slate.keep_session(realm, session, 2.5)
    slate.keep_init_answer(b"init")
    kept = Slate(memory).session
    assert kept is not None
    assert (kept.realm, kept.session, kept.received) == (realm, session, 2.5)
    assert Slate(memory).init_answer == b"init"


def test_memory_of_another_version_is_refused(memory: int) -> None:
    Slate(memory)
    os.pwrite(memory, b"\xff", 0)
    with pytest.raises(OSError, match="another version"):
        Slate(memory)
    os.ftruncate(memory, 4096)
    with pytest.raises(OSError, match="another version"):
        Slate(memory)


def test_more_calls_than_there_is_room_for_are_refused(memory: int) -> None:
    slate = Slate(memory)
    for unique in range(CALLS_MAX):
        slate.calls.take(Call(unique))
    with pytest.raises(OSError, match="no more than"):
        slate.calls.take(Call(0))


def test_a_call_that_is_repeated_uses_the_number_of_the_first_time(memory: int) -> None:
    first = Calls(Slate(memory))
    unlink = Unlink(1, b"name", False)
    assert first.numbering(unlink) is None, "nobody would repeat it"
    first.begin(8)
    assert first.numbering(OpenWrite(2, b"", False)) is None
    numbering = first.numbering(unlink)
    assert numbering is not None
    assert numbering(41) == 41
    second = Calls(Slate(memory))
    assert second.requests() == [41]
    second.begin(9)
    numbering = second.numbering(unlink)
    assert numbering is not None
    assert numbering(50) == 50, "another call"
    second.begin(8)
    numbering = second.numbering(unlink)
    assert numbering is not None
    assert numbering(51) == 41
    assert numbering(52) == 52, "only once"


def test_the_number_may_be_acknowledged_when_the_kernel_has_the_answer(memory: int) -> None:
    calls = Calls(Slate(memory))
    ended: list[int] = []
    calls.on_end = ended.append
    for unique, number in ((1, 10), (2, 11)):
        calls.begin(unique)
        numbering = calls.numbering(Create(1, b"n", 0o100644, ino=5))
        assert numbering is not None
        numbering(number)
        assert ended == list(range(10, number))
        calls.end()
    assert ended == [10, 11]
    assert calls_of(memory) == []


def test_an_append_is_repeated_at_its_place(memory: int) -> None:
    calls = Calls(Slate(memory))
    calls.begin(1)
    assert calls.place(100) == 100
    again = Calls(Slate(memory))
    assert again.place(500) == 500, "no call of the kernel's"
    again.begin(1)
    assert again.place(200) == 100
    again.end()
    again.begin(2)
    assert again.place(200) == 200
