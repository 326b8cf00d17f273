"""Which file servers live: what the directory remembers of their heartbeats, in memory only.

alive    heard within ``suspect_seconds``
suspect  silent for longer, or not heard since the directory started
dead     silent for ``dead_seconds``, counted from the directory's start at the earliest

A server that is dead for ``repair_delay_seconds`` more is written off: its replicas are no more counted
on, and it stays dead until it registers again (and sends its inventory).
"""

import errno
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from servers.directory.config import DirectoryConfig
from wire.errors import fail
from wire.messages.common import ServerAddress
from wire.messages.directory import Heartbeat

SPACE_SHARE = 0.01
"""The space is stored when it has changed by this share of the whole."""


@dataclass(frozen=True)
class FileServer:
    """One server, as it was at a moment."""

    id: int
    name: str
    url: str
    pid: int
    total_bytes: int
    free_bytes: int
    written_off: bool
    heard: float = 0.0
    """Seconds since the epoch; the directory's start if it was not heard since."""
    was_heard: bool = False
    """Whether it was heard since the directory started."""
    stored_bytes: int = 0
    """``free_bytes`` as the database has it."""

    @property
    def address(self) -> ServerAddress:
        """Where it is reached."""
        return ServerAddress(self.id, self.url)


class FileServers:
    """All that ever registered. Thread-safe; what is answered does not change afterwards."""

    def __init__(self, config: DirectoryConfig, started: float) -> None:
        self._config = config
        self._started = started
        self._lock = threading.Lock()  # over every change; reading one entry needs none
        self._servers: dict[int, FileServer] = {}

    def load(self, servers: Iterable[FileServer]) -> None:
        """Takes over what was registered before the directory started."""
        with self._lock:
            for server in servers:
                self._servers[server.id] = replace(
                    server, heard=self._started, was_heard=False, stored_bytes=server.free_bytes
                )

    def add(self, server: FileServer, now: float) -> None:
        """``server`` has registered: it is alive, under this name and address."""
        with self._lock:
            self._servers[server.id] = replace(
                server, heard=now, was_heard=True, stored_bytes=server.free_bytes
            )

    def check(self, server_id: int) -> None:
        """Raises ENOENT unless the server is registered and not written off."""
        server = self._servers.get(server_id)
        if server is None or server.written_off:
            raise fail(errno.ENOENT, f"file server {server_id} must register")

    def hear(self, server_id: int, message: Heartbeat, now: float) -> bool:
        """The server lives; whether its space has changed enough to be stored. Raises ENOENT as ``check``."""
        with self._lock:
            self.check(server_id)
            server = self._servers[server_id]
            changed = (
                server.total_bytes != message.total_bytes
                or abs(server.stored_bytes - message.free_bytes) > SPACE_SHARE * message.total_bytes
            )
            self._servers[server_id] = replace(
                server,
                heard=now,
                was_heard=True,
                total_bytes=message.total_bytes,
                free_bytes=message.free_bytes,
                stored_bytes=message.free_bytes if changed else server.stored_bytes,
            )
            return changed

    def write_off(self, now: float) -> list[int]:
        """Marks the servers that are dead for too long, and returns all that are marked. When no server
        lives it is likelier that the directory was cut off, or its clock set: then it marks none."""
        if not self.living(now):
            return []
        limit = self._config.dead_seconds + self._config.repair_delay_seconds
        with self._lock:
            for server in list(self._servers.values()):
                if now - server.heard >= limit and not server.written_off:
                    self._servers[server.id] = replace(server, written_off=True)
            return [server.id for server in self._servers.values() if server.written_off]

    def all(self) -> list[FileServer]:
        """Every server, by id."""
        with self._lock:
            return sorted(self._servers.values(), key=lambda server: server.id)

    def usable(self) -> list[ServerAddress]:
        """Where those are that are not written off."""
        return [server.address for server in self.all() if not server.written_off]

    def alive(self, now: float) -> list[FileServer]:
        """Those that can be given something."""
        return [server for server in self.all() if self._state(server, now) == "alive"]

    def living(self, now: float) -> list[FileServer]:
        """Those that are not dead."""
        return [server for server in self.all() if self._state(server, now) != "dead"]

    def dead(self, now: float) -> list[FileServer]:
        """Those that have been silent for too long."""
        return [server for server in self.all() if self._state(server, now) == "dead"]

    def state(self, server_id: int, now: float) -> str:
        """alive, suspect or dead; dead also if nobody knows it."""
        server = self._servers.get(server_id)
        return "dead" if server is None else self._state(server, now)

    def addresses(self, ids: Iterable[int]) -> list[ServerAddress]:
        """Where they are reached; unknown ones are left out."""
        found = (self._servers.get(server_id) for server_id in ids)
        return [server.address for server in found if server is not None]

    def _state(self, server: FileServer, now: float) -> str:
        silent = now - server.heard
        if silent >= self._config.dead_seconds or server.written_off:
            return "dead"
        if silent >= self._config.suspect_seconds or not server.was_heard:
            return "suspect"
        return "alive"
