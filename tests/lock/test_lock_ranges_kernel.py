"""Ranges do what the kernel does with locks of a local file: any sequence of them, the same answers, the same
state. Owners are open descriptions of that file: their fcntl(2) locks are those of F_OFD_SETLK."""

import errno
import fcntl
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from servers.lock.ranges import Claim, Stock, conflict_of, covers, of_owner
from tests.support.lock import LockRealm
from wire.messages.lock import Range
from wire.ranges import WHOLE, with_range, without

OWNERS = 3
PID = 100

FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2)


class LocalFile:
    """A file that is open several times; what is locked through each of them."""

    def __init__(self) -> None:
        first, name = tempfile.mkstemp()
        self._fds = [first, *(os.open(name, os.O_RDWR) for _ in range(OWNERS - 1))]
        os.unlink(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

    def put(self, wanted: Range, is_free: bool = False) -> bool:
        """Whether it was granted."""
        fd = self._fds[wanted.owner]
        try:
            if wanted.is_flock:
                kind = fcntl.LOCK_EX if wanted.is_exclusive else fcntl.LOCK_SH
                fcntl.flock(fd, fcntl.LOCK_UN if is_free else kind | fcntl.LOCK_NB)
            else:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _packed(wanted, is_free))
        except OSError as error:
            assert error.errno == errno.EAGAIN
            return False
        return True

    def is_free_to_be(self, wanted: Range) -> bool:
        """What F_OFD_GETLK says."""
        answer = fcntl.fcntl(self._fds[wanted.owner], fcntl.F_OFD_GETLK, _packed(wanted, False))
        return bool(FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)

    def held(self) -> list[Range]:
        """All locks, as /proc shows them (see proc_pid_fdinfo(5))."""
        found: list[Range] = []
        for owner, fd in enumerate(self._fds):
            for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
                if match := re.match(r"lock:\s+\d+: (FLOCK|OFDLCK)\s+\w+\s+(\w+) \S+ \S+ (\d+) (\w+)", line):
                    kind, strength, first, last = match.groups()
                    end = WHOLE if last == "EOF" else int(last)
                    found.append(Range(kind == "FLOCK", owner, int(first), end, strength == "WRITE", PID))
        return sorted(found, key=_order)


def _packed(wanted: Range, is_free: bool) -> bytes:
    kind = fcntl.F_UNLCK if is_free else fcntl.F_WRLCK if wanted.is_exclusive else fcntl.F_RDLCK
    length = 0 if wanted.last == WHOLE else wanted.last - wanted.first + 1
    return FLOCK.pack(kind, os.SEEK_SET, wanted.first, length, 0)


def _order(range: Range) -> tuple[bool, int, int]:
    return range.is_flock, range.owner, range.first


@dataclass(frozen=True)
class Step:
    """Something that an owner does."""

    wanted: Range
    is_free: bool


@st.composite
def byte_ranges(draw: st.DrawFn) -> Range:
    """Of a few bytes, so that they meet."""
    first = draw(st.integers(0, 12))
    last = draw(st.one_of(st.integers(first, 13), st.just(WHOLE)))
    return Range(False, draw(st.integers(0, OWNERS - 1)), first, last, draw(st.booleans()), PID)


flocks = st.builds(
    Range, st.just(True), st.integers(0, OWNERS - 1), st.just(0), st.just(WHOLE), st.booleans(), st.just(PID)
)
steps = st.builds(Step, byte_ranges(), st.sampled_from([False, False, True]))


@given(st.lists(steps, max_size=30))
@settings(max_examples=100, deadline=None)
def test_what_is_left_and_what_is_in_conflict(sequence: list[Step]) -> None:
    held: list[Claim] = []
    with LocalFile() as local:
        for step in sequence:
            claim = Claim(1, step.wanted)
            mine = of_owner(held, claim.owner)
            is_possible = step.is_free or conflict_of(held, claim) is None
            others = Stock(Claim(2, other.range) for other in held if other.owner != claim.owner)
            assert Stock(held).covers(claim) == covers(mine, step.wanted)
            if not step.wanted.is_exclusive and not step.is_free:
                assert others.is_against(claim) != is_possible
            assert local.put(step.wanted, step.is_free) == is_possible
            if is_possible:
                new = without(mine, step.wanted) if step.is_free else with_range(mine, step.wanted)
                held = [other for other in held if other.owner != claim.owner]
                held += [Claim(1, range) for range in new]
                assert covers(new, step.wanted) != step.is_free
            assert sorted((other.range for other in held), key=_order) == local.held()


class KernelMachine(RuleBasedStateMachine):
    """The service, asked by one session and never to wait, against the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.house = LockRealm(Path(self.folder.name))
        self.client = self.house.client("alice")
        self.local = LocalFile()

    def teardown(self) -> None:
        self.local.__exit__()
        self.house.close()
        self.folder.cleanup()

    @rule(wanted=st.one_of(byte_ranges(), flocks))
    def put(self, wanted: Range) -> None:
        """Granted or refused, and what is given up for it."""
        assert (self.client.set_range(7, wanted).conflict is None) == self.local.put(wanted)

    @rule(freed=st.one_of(byte_ranges(), flocks))
    def free(self, freed: Range) -> None:
        """Never refused."""
        self.client.free_range(7, freed)
        assert self.local.put(freed, is_free=True)

    @rule(wanted=byte_ranges())
    def ask(self, wanted: Range) -> None:
        """One that is held and stands against it."""
        conflict = self.client.ask_range(7, wanted).conflict
        assert (conflict is None) == self.local.is_free_to_be(wanted)
        assert conflict is None or conflict in self.held()

    @rule()
    def restate(self) -> None:
        """What is there is there."""
        assert self.client.restate_ranges(7, self.held()) == []

    @rule()
    def restart(self) -> None:
        """All is where it was."""
        self.house.restart()

    @invariant()
    def the_same_is_held(self) -> None:
        """To the byte, and in as many pieces."""
        assert self.held() == self.local.held()

    def held(self) -> list[Range]:
        """What people see, but for who asks in vain again and again: to his own session he is no obstacle."""
        found = self.house.server.service.locks().ranges
        return sorted((info.range for info in found if not info.is_waiting), key=_order)


TestKernel = KernelMachine.TestCase
TestKernel.settings = settings(
    max_examples=10, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
