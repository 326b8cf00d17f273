"""The control socket of a supervisor: one JSON message a line, one answer a line.

Who can open the socket (0600 in a 0700 folder) may control the realm; there is no other check.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import socketserver
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from servers.supervision import RealmRoot
from wire.errors import Problem, fail, from_problem, to_problem
from wire.messages.directory import Servers

log = logging.getLogger(__name__)

ANSWER_SECONDS = 40.0
"""Longer than the orderly stop of all services."""
REMAINS_SECONDS = 15.0
"""How long what a killed supervisor left may need to end."""


class Ask(msgspec.Struct, frozen=True):
    """``name`` is the service's, for stop and start."""

    verb: Literal["status", "stop", "start", "down"]
    name: str = ""


class ChildStatus(msgspec.Struct, frozen=True):
    """A supervised service, for people and for ``dfs status``."""

    name: str
    role: str
    url: str
    state: str
    pid: int
    """0: there is no process."""
    restarts: int


class Told(msgspec.Struct, frozen=True):
    """How the realm is after the verb, or the problem with it. ``servers`` is None while the directory
    does not answer."""

    realm: str = ""
    fingerprint: str = ""
    pid: int = 0
    services: list[ChildStatus] = []
    servers: Servers | None = None
    problem: Problem | None = None


class RootLock:
    """A realm's folder has one supervisor at a time. Its services inherit the lock: as long as one of
    them is left, nobody else starts on the same databases."""

    def __init__(self, root: RealmRoot) -> None:
        self.descriptor = os.open(root.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def try_to_take(self) -> bool:
        """Whether the lock was free and is ours now."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Waits until it is free."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)


def ask(root: RealmRoot, message: Ask) -> Told:
    """The running supervisor's answer. Raises ENOENT if none runs, or the problem that it tells."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            with _address(root) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise fail(errno.ENOENT, f"no realm runs in {root.path}") from error
        connection.sendall(msgspec.json.encode(message) + b"\n")
        with connection.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise fail(errno.ENOENT, f"the realm in {root.path} has just ended")
    told = msgspec.json.decode(line, type=Told)
    if told.problem is not None:
        raise from_problem(told.problem)
    return told


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers with what ``handle`` returns or raises. ``serve_forever`` runs in a thread of the owner's."""

    daemon_threads = True

    def __init__(self, root: RealmRoot, handle: Callable[[Ask], Told]) -> None:
        self.handle = handle
        self._path = root.run / "control.sock"
        self._path.unlink(missing_ok=True)
        with _address(root) as address:
            super().__init__(address, _Handler)
        self._path.chmod(0o600)

    def shutdown(self) -> None:
        """Ends ``serve_forever``, which wakes up for it; else it would look only twice a second."""
        self.socket.shutdown(socket.SHUT_RDWR)
        super().shutdown()

    def server_close(self) -> None:
        """Closes the socket and takes its name away."""
        super().server_close()
        self._path.unlink(missing_ok=True)


class _Handler(socketserver.StreamRequestHandler):
    server: ControlServer

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.wfile.write(msgspec.json.encode(self._answer(line)) + b"\n")
        except ConnectionError as error:
            log.info("whoever asked went away: %s", error)

    def _answer(self, line: bytes) -> Told:
        try:
            return self.server.handle(msgspec.json.decode(line, type=Ask))
        except OSError as error:
            return Told(problem=to_problem(error))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            return Told(problem=to_problem(fail(errno.EINVAL, f"not a question to a supervisor: {error}")))


@contextlib.contextmanager
def _address(root: RealmRoot) -> Iterator[str]:
    """The socket's path, short however deep the root lies: an address has 108 bytes (unix(7))."""
    folder = os.open(root.run, os.O_PATH | os.O_DIRECTORY)
    try:
        yield str(Path(f"/proc/self/fd/{folder}/control.sock"))
    finally:
        os.close(folder)
