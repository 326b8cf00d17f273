"""Threads that wait for one another's attempts share what comes of them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients.attempts import Attempts
from clients.session import Keyring
from tests.support.stack import DIRECTORY, Stack
from wire.errors import Unavailable
from wire.messages.auth import Session

THREADS = 8
DEADLINE_SECONDS = 0.3


def test_who_waited_shares_the_failure_and_who_comes_later_tries_anew() -> None:
    attempts = Attempts()
    is_away = threading.Event()
    made: list[int] = []

    def attempt() -> None:
        with attempts.turn():
            made.append(1)
            is_away.wait(DEADLINE_SECONDS)
            raise Unavailable("away")

    with ThreadPoolExecutor(THREADS) as pool:
        failures = [future.exception() for future in [pool.submit(attempt) for _ in range(THREADS)]]
    assert [str(failure) for failure in failures] == [str(Unavailable("away"))] * THREADS
    assert all(isinstance(failure, Unavailable) for failure in failures)
    assert len(made) == 1
    is_away.set()
    with pytest.raises(Unavailable):
        attempt()
    assert len(made) == 2
    with attempts.turn():
        pass


def test_uploads_that_need_new_places_share_one_deadline(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        client = stack.client(deadline_seconds=DEADLINE_SECONDS)
        stack.away(DIRECTORY)
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            failures = list(pool.map(lambda _: outcome(client.proxy._placement.next_set), range(THREADS)))
        assert time.monotonic() - began < 4 * DEADLINE_SECONDS
        assert all(isinstance(failure, Unavailable) for failure in failures)
        stack.back()
        assert len(client.proxy._placement.next_set()) > 0


def test_who_needs_a_new_ticket_shares_one_deadline() -> None:
    asked: list[int] = []

    def renew(old: Session) -> Session:
        asked.append(1)
        time.sleep(DEADLINE_SECONDS)
        raise Unavailable("the authentication server is away")

    keyring = Keyring(Session(1, "alice", 1, [1], False, False, 3600.0, []), renew)
    with ThreadPoolExecutor(THREADS) as pool:
        failures = list(pool.map(lambda _: outcome(keyring.renew), range(THREADS)))
    assert all(isinstance(failure, Unavailable) for failure in failures)
    assert len(asked) == 1


def outcome(do: Callable[[], object]) -> object:
    """What it returns or raises."""
    try:
        return do()
    except OSError as error:
        return error
