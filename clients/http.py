"""Moving bytes over HTTP/1.1: what mounts, commands and services use to speak to services.

Calls are small and many. So without TLS the exchange is done here, on connections that are kept and with the
standard library's parser of answers: with requests a call took 1.1 to 2.0 ms here, and takes 0.6 to 0.9. What
goes over TLS is passed to clients.tls.
"""

import select
import socket
import threading
from collections import deque
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clients.session import Answer
from wire.errors import NeverReached, ReplyLost
from wire.headers import METHODS_WITH_BODY, SEALED
from wire.limits import BODY_BYTES_MAX

if TYPE_CHECKING:
    from clients.tls import TlsWire

CONNECT_SECONDS = 3.0
BLOCK_BYTES = 256 * 1024
IDLE_MAX = 64
"""Connections that are kept for one host."""


class HttpWire:
    """A ``clients.session.Wire``, shared by all channels of a process. Thread-safe."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._making = threading.Lock()
        self._tls: TlsWire | None = None

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """Raises NeverReached or ReplyLost."""
        if url.startswith("https://"):
            return self._over_tls().send(method, url, headers, body, silence_seconds)
        host, head = self._begin(method, url, headers, body)
        connection = host.connect(min(CONNECT_SECONDS, silence_seconds))
        response = HTTPResponse(connection, method=method)
        is_kept = False
        try:
            connection.settimeout(silence_seconds)
            _send(connection, head, body)
            response.begin()
            is_bounded = response.length is not None and response.length <= BODY_BYTES_MAX
            data = response.read() if is_bounded else response.read(BODY_BYTES_MAX + 1)
            is_kept = is_bounded and not response.will_close
        except (OSError, HTTPException) as error:
            raise ReplyLost(f"the connection to {url} broke: {error or type(error).__name__}") from error
        finally:
            if is_kept:
                host.keep(connection)
            else:
                response.close()  # it has the socket open as well
                connection.close()
        return Answer(response.status, response.headers.get("Content-Type") == SEALED, data)

    def _begin(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple["_Host", bytes]:
        """Whom to ask, and the request up to its body. Raises NeverReached for what is no address."""
        origin, _, path = url.removeprefix("http://").partition("/")
        try:
            if not url.startswith("http://") or not url.isprintable() or " " in url:
                raise ValueError("it has a character that none has")
            host = self._hosts.get(origin)
            if host is None:
                host = self._hosts[origin] = _Host(origin)
            lines = [f"{method} /{path} HTTP/1.1", f"Host: {origin}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            if body or method in METHODS_WITH_BODY:
                lines.append(f"Content-Length: {len(body)}")
            return host, "\r\n".join([*lines, "\r\n"]).encode("ascii")
        except ValueError as error:
            raise NeverReached(f"{url!r} is no address: {error}") from error

    def _over_tls(self) -> "TlsWire":
        """Made when it is first needed."""
        with self._making:
            if self._tls is None:
                from clients.tls import TlsWire

                self._tls = TlsWire(CONNECT_SECONDS)
            return self._tls

    def close(self) -> None:
        """Closes the kept connections."""
        if self._tls is not None:
            self._tls.close()
        for host in self._hosts.values():
            host.close()


class _Host:
    """Where one service listens, and the connections to it that nobody uses now."""

    def __init__(self, origin: str) -> None:
        parts = urlsplit(f"http://{origin}")
        if not parts.hostname:
            raise ValueError("it names no host")
        self._origin = origin
        self._address = parts.hostname, parts.port or 80
        self._idle: deque[socket.socket] = deque()

    def connect(self, seconds: float) -> socket.socket:
        """A connection: the one that was used last, or a new one. Raises NeverReached."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect(seconds)
            if not _has_ended(connection):
                return connection
            connection.close()

    def _connect(self, seconds: float) -> socket.socket:
        try:
            connection = socket.create_connection(self._address, seconds)
        except TimeoutError as error:
            raise NeverReached(f"http://{self._origin} does not answer") from error
        except UnicodeError as error:
            raise NeverReached(f"http://{self._origin} is no address: {error}") from error
        except OSError as error:
            raise NeverReached(f"nobody listens at http://{self._origin}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def keep(self, connection: socket.socket) -> None:
        """It was used and can be used again."""
        if len(self._idle) < IDLE_MAX:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes what is kept."""
        while self._idle:
            self._idle.pop().close()


def _has_ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it, or said something that nobody asked for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _send(connection: socket.socket, head: bytes, body: bytes) -> None:
    """A large body goes in blocks: a socket's time-out is for all of what it is given (socket.sendall)."""
    if len(body) <= BLOCK_BYTES:
        connection.sendall(head + body)
        return
    connection.sendall(head)
    view = memoryview(body)
    for start in range(0, len(body), BLOCK_BYTES):
        connection.sendall(view[start : start + BLOCK_BYTES])
