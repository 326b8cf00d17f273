"""The control socket of a mount: how `dfs status`, `dfs where` and `dfs umount` talk to it.

One JSON message a line each way over a Unix socket that only its owner may open. Verbs: ``status``,
``write-back`` (commits what is dirty, then as status), ``where`` (with ``ino``), ``drop-cache``, ``replace``
(has the keeper run another version's worker: this one is ended right after the answer, or before).
"""

import errno
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mount.proxy import Proxy
from mount.recovery import Recovery
from mount.vfs import Vfs
from mount.worker import Worker
from wire.errors import Problem, fail, from_problem, to_problem
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX
from wire.messages.common import ServerAddress

log = logging.getLogger(__name__)


BETWEEN_WORKERS_SECONDS = 20.0
"""A worker that does not come in this time has trouble of its own."""


class Request(msgspec.Struct, frozen=True):
    """What is asked; ``ino`` for ``where``, ``program`` and ``environment`` for ``replace``."""

    verb: str
    ino: int = 0
    program: list[str] = []
    environment: dict[str, str] = {}


class WhereChunk(msgspec.Struct, frozen=True):
    """A chunk and the servers that have it, primary first."""

    index: int
    id: str
    size: int
    servers: list[ServerAddress]


class Where(msgspec.Struct, frozen=True):
    """Everything that is known of where a file is. ``local_version`` is that of the local copy (0: none);
    ``local_lacking`` are the chunks that must be asked for before all of it is here."""

    ino: int
    version: int
    size: int
    lock_holder: str
    local_version: int
    local_dirty: bool
    local_lacking: int
    chunks: list[WhereChunk]


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is answered, or the problem. ``unsaved`` is the number of files whose content no commit has
    covered, what earlier mounts have left included; ``leased`` whether its lease runs, None if it wants
    none."""

    problem: Problem | None = None
    unsaved: int = 0
    leased: bool | None = None
    where: Where | None = None


class ControlServer:
    """Serves the socket ``path``, in a folder that is there, from a thread until ``close``."""

    def __init__(
        self, path: Path, proxy: Proxy, vfs: Vfs, recovery: Recovery, worker: Worker | None = None
    ) -> None:
        self._path = path
        self._proxy = proxy
        self._vfs = vfs
        self._recovery = recovery
        self._worker = worker
        path.unlink(missing_ok=True)
        answer = self._answer

        class Conversation(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    self.wfile.write(msgspec.json.encode(answer(line)) + b"\n")

        old = os.umask(0o177)
        try:
            with _address(path) as address:
                self._server = socketserver.ThreadingUnixStreamServer(address, Conversation)
        finally:
            os.umask(old)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and removes the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _answer(self, line: bytes) -> Reply:
        try:
            return self._carry_out(msgspec.json.decode(line, type=Request))
        except OSError as error:
            return Reply(to_problem(error))
        except msgspec.DecodeError as error:
            return Reply(to_problem(fail(errno.EINVAL, f"not a question to a mount: {error}")))
        except Exception as error:
            log.exception("a control request failed unforeseen")
            return Reply(to_problem(fail(errno.EIO, f"internal error: {error!r}")))

    def _carry_out(self, request: Request) -> Reply:
        match request.verb:
            case "status":
                pass
            case "write-back":
                self._recovery.run()
                self._vfs.write_back_all()
            case "drop-cache":
                self._vfs.drop_clean_copies()
            case "where":
                return Reply(where=self._where(request.ino))
            case "replace" if self._worker is not None:
                self._worker.replace(request.program, request.environment)
            case other:
                raise fail(errno.EINVAL, f"the mount knows no verb {other!r}")
        unsaved = len({*self._vfs.unsaved(), *self._recovery.left()})
        return Reply(unsaved=unsaved, leased=self._vfs.is_leased)

    def _where(self, ino: int) -> Where:
        attr = self._proxy.directory.attrs([ino])[0]
        if attr is None:
            raise fail(errno.ENOENT, f"inode {ino} is not in the realm")
        holder = next(
            (f"{lock.user}@{lock.client}" for lock in self._proxy.lock.locks().locks if lock.ino == ino), ""
        )
        chunks = []
        for first in range(0, -(-attr.size // CHUNK_BYTES), MANIFEST_CHUNKS_MAX):
            for chunk in self._proxy.manifest(ino, attr.version, first).chunks:
                servers = self._proxy.addresses(chunk.servers)
                chunks.append(WhereChunk(chunk.index, chunk.id.hex(), chunk.size, servers))
        version, dirty, lacking = self._vfs.local_state(ino)
        return Where(ino, attr.version, attr.size, holder, version, dirty, lacking, chunks)


def ask_patiently(control: str, request: Request, timeout_seconds: float = 60.0) -> Reply:
    """As ``ask``, of a mount that is there: between two workers nobody listens for a moment."""
    last_moment = time.monotonic() + BETWEEN_WORKERS_SECONDS
    while time.monotonic() < last_moment:
        try:
            return ask(control, request, timeout_seconds)
        except (ConnectionError, FileNotFoundError):
            time.sleep(0.05)
    return ask(control, request, timeout_seconds)


def ask(control: str, request: Request, timeout_seconds: float = 60.0) -> Reply:
    """One exchange with a mount. Raises OSError if it does not answer or refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        with _address(Path(control)) as address:
            connection.connect(address)
        connection.sendall(msgspec.json.encode(request) + b"\n")
        line = connection.makefile("rb").readline()
    if not line:
        raise fail(errno.EPIPE, "the mount went away")
    reply = msgspec.json.decode(line, type=Reply)
    if reply.problem is not None:
        raise from_problem(reply.problem)
    return reply


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """The socket's path, short however deep the state folder lies: an address has 108 bytes (unix(7))."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
