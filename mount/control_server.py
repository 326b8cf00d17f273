"""The mount's end of its control socket (mount.control)."""

import errno
import logging
import os
import socket
import socketserver
import threading
from pathlib import Path

import msgspec

from mount.control import Reply, Request, Where, WhereChunk, address_of
from mount.proxy import Proxy
from mount.recovery import Recovery
from mount.vfs import Vfs
from mount.worker import Worker
from wire.errors import fail, to_problem
from wire.limits import CHUNK_BYTES, MANIFEST_CHUNKS_MAX

log = logging.getLogger(__name__)


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
            with address_of(path) as address:
                self._server = socketserver.ThreadingUnixStreamServer(address, Conversation)
        finally:
            os.umask(old)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and removes the socket."""
        self._server.socket.shutdown(socket.SHUT_RDWR)  # who waits there wakes up, and looks whether to end
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
