"""Ranges that programs lock, and what the lock server says to them."""

from concurrent.futures import Future

from clients.lock import LockClient
from tests.support.lock import PATIENCE, LockRealm
from wire.messages.lock import Range, RangeAnswer

ALL = 2**63 - 1


def write(first: int = 0, last: int = 9, owner: int = 1) -> Range:
    """F_WRLCK."""
    return Range(False, owner, first, last, True, 100 + owner)


def read(first: int = 0, last: int = 9, owner: int = 1) -> Range:
    """F_RDLCK."""
    return Range(False, owner, first, last, False, 100 + owner)


def flock(is_exclusive: bool = True, owner: int = 1) -> Range:
    """LOCK_EX or LOCK_SH."""
    return Range(True, owner, 0, ALL, is_exclusive, 100 + owner)


def takes(client: LockClient, wanted: Range, ino: int = 7, wait_seconds: float = 0.0) -> None:
    """It is granted."""
    assert client.set_range(ino, wanted, wait_seconds) == RangeAnswer()


def refused(client: LockClient, wanted: Range, ino: int = 7, wait_seconds: float = 0.0) -> RangeAnswer:
    """What stands against it."""
    answer = client.set_range(ino, wanted, wait_seconds)
    assert answer.conflict is not None
    return answer


def granted(future: "Future[RangeAnswer]") -> bool:
    """What a waiting request was told."""
    return future.result(PATIENCE).conflict is None


def shown(house: LockRealm, user: str) -> list[Range]:
    """What people see that the user has."""
    return [
        info.range
        for info in house.server.service.locks().ranges
        if info.user == user and not info.is_waiting
    ]
