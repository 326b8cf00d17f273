"""Ports for realms, of which no other process that runs tests takes any, also while they are free.

The services share ports with whoever else binds them. Two realms that chose the same one, or one of them that
of a service which the other has stopped for a moment, would not notice, and answer each other's clients.
"""

import itertools
import os

from servers.ports import is_free

FIRST, BLOCK, BLOCKS = 10000, 100, 220
"""They lie below the range of outgoing connections; each process has a block."""

_begin = FIRST + os.getpid() % BLOCKS * BLOCK
_ports = itertools.cycle(range(_begin, _begin + BLOCK))


def own_ports(count: int) -> int:
    """The first of ``count`` consecutive free ports of this process. Earlier ones come again last."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        follows = not found or port == found[-1] + 1
        found = [*found, port] if follows and is_free("127.0.0.1", port) else []
    return found[0]
