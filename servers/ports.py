"""Ports that nobody else has, and nobody else takes before a service listens there.

Services share their ports (SO_REUSEPORT), so two realms that saw a port free at the same moment would both
listen there, and each would get some of the other's requests. So who means to use a port claims it before
looking: with an abstract UNIX socket of that name (unix(7)). One process at a time can have it, in the same
network namespace as the port itself, and it goes with the process.
"""

import errno
import socket

from wire.errors import fail


class Claims:
    """What this process has claimed, until ``close`` or its end."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], socket.socket] = {}

    def close(self) -> None:
        """Others may have the ports."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def take(self, host: str, port: int) -> bool:
        """Claims a port; False if another process has done so, or somebody listens there. Raises OSError if
        nobody can listen there."""
        return self._claim(host, port) and is_free(host, port)

    def _claim(self, host: str, port: int) -> bool:
        if (host, port) in self._held:
            return True
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            held.bind(f"\0dfs/{host}:{port}")
        except OSError as error:
            held.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._held[host, port] = held
        return True


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. The services' own sockets would not notice: they share ports."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise fail(error.errno or errno.EIO, f"cannot listen at {host}:{port}: {error.strerror}") from error
    return True
