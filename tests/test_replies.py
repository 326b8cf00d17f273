"""Remembered replies: once is once, whatever is retried, restarted or never acknowledged."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, MetaData

from servers import replies as replies_module
from servers.database import Database, sqlite_url
from servers.replies import Replies, settle
from wire import codec
from wire.errors import Replayed, Unavailable, fail
from wire.limits import TICKET_SECONDS
from wire.messages.lock import Held


class Service:
    """A counter that each mutation raises, so that one that is carried out twice is seen."""

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        metadata = MetaData()
        self.replies = Replies(metadata, lambda: self.now)
        self.database = Database(sqlite_url(path), metadata)
        self.done = 0

    def mutate(self, counter: int, acked: int = 0, session: int = 7) -> Held:
        def run() -> Held:
            self.done += 1
            return Held(counter, self.done)

        def change(connection: Connection) -> bytes | OSError:
            return self.replies.once(connection, session, counter, acked, run)

        return codec.decode(settle(self.database.write(change)), Held)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Service]]:
    """Starts the service, again on the same database."""
    services: list[Service] = []

    def make() -> Service:
        for service in services:
            service.database.close()
        services[:] = [Service(tmp_path / "replies.db")]
        return services[0]

    yield make
    services[0].database.close()


def test_a_repeated_request_gets_the_first_reply(start: Callable[[], Service]) -> None:
    service = start()
    assert service.mutate(3) == service.mutate(3) == Held(3, 1)
    assert service.mutate(3, session=8) == Held(3, 2)
    assert start().mutate(3) == Held(3, 1)  # also after a restart


def test_an_error_is_a_reply_too(start: Callable[[], Service]) -> None:
    service = start()

    def refuse() -> Held:
        service.done += 1
        raise fail(errno.ENOENT, "there is none")

    for _ in range(2):
        outcome = service.database.write(lambda c: service.replies.once(c, 7, 1, 0, refuse))
        assert isinstance(outcome, FileNotFoundError)
    assert service.done == 1


def test_what_was_acknowledged_is_refused_also_after_a_restart(start: Callable[[], Service]) -> None:
    service = start()
    for counter in range(1, 5):
        service.mutate(counter, acked=counter)
    for restart in (False, True):
        service = start() if restart else service
        with pytest.raises(Replayed):
            service.mutate(3)
        assert service.mutate(4) == Held(4, 4)


def test_a_mark_that_was_rolled_back_harms_nobody(start: Callable[[], Service]) -> None:
    service = start()
    service.mutate(1)

    def change(connection: Connection) -> None:
        service.replies.once(connection, 7, 2, 2, lambda: Held(2, 0))
        raise fail(errno.ENOSPC, "the disk is full")

    with pytest.raises(OSError, match="full"):
        service.database.write(change)
    assert service.mutate(2, acked=1) == Held(2, 2)
    assert service.mutate(1) == Held(1, 1)


def test_replies_that_nobody_acknowledges_are_bounded(
    start: Callable[[], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies_module, "UNACKED_MAX", 3)
    service = start()
    for counter in (1, 2, 3):
        service.mutate(counter)
    with pytest.raises(Unavailable):
        service.mutate(4)
    assert service.mutate(3) == Held(3, 3)
    assert service.mutate(4, session=8).token == 4
    assert start().mutate(3) == Held(3, 3)


def test_old_replies_go(start: Callable[[], Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies_module, "UNACKED_MAX", 1)
    service = start()
    service.mutate(1)
    service.now += 2 * TICKET_SECONDS + 1
    service.database.write(service.replies.forget_old)
    assert service.mutate(2) == Held(2, 2)
