"""The wire that mounts and services use: what its time limits are for, and what each failure is called."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from clients import session
from clients.session import HttpWire
from wire.errors import NeverReached, ReplyLost

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """The URL of a server that takes one connection and one request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


@pytest.fixture
def wire() -> Iterator[HttpWire]:
    wire = HttpWire()
    yield wire
    wire.close()


def test_who_is_connected_may_take_longer_than_connecting(
    wire: HttpWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CONNECT_SECONDS", 0.1)
    slow = threading.Event()

    def answer(connection: socket.socket) -> None:
        slow.wait(0.5)
        connection.sendall(REPLY)

    with server(answer) as url:
        assert wire.send("GET", f"{url}/x", {}, b"", 10.0).body == b"ok"


def test_silence_is_a_lost_reply(wire: HttpWire) -> None:
    is_over = threading.Event()
    with server(lambda _connection: is_over.wait(10.0)) as url:
        with pytest.raises(ReplyLost):
            wire.send("GET", f"{url}/x", {}, b"", 0.1)
        is_over.set()


def test_an_answer_that_breaks_off_is_a_lost_reply(wire: HttpWire) -> None:
    with server(lambda connection: connection.sendall(REPLY[:-1])) as url, pytest.raises(ReplyLost):
        wire.send("POST", f"{url}/x", {}, b"body", 10.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://[::1/x", "http://a..b/x", "http:///x"])
def test_who_is_not_there_was_never_reached(wire: HttpWire, url: str) -> None:
    with pytest.raises(NeverReached):
        wire.send("GET", url, {}, b"", 1.0)
