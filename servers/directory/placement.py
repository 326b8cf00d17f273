"""Where new chunks go: pure choices among file servers."""

import math
import random
from collections.abc import Callable, Sequence

from servers.directory.fileservers import FileServer

RESERVE_BYTES = 64 * 1024 * 1024
RESERVE_SHARE = 0.01
"""A server with less free space than both together is full."""

_random = random.Random()

Draw = Callable[[], float]
"""Gives a random number from 0 up to, not including, 1."""


def has_room(server: FileServer) -> bool:
    """Whether the server may be given new chunks."""
    return server.free_bytes >= RESERVE_BYTES + RESERVE_SHARE * server.total_bytes


def choose(servers: Sequence[FileServer], count: int, draw: Draw = _random.random) -> list[FileServer]:
    """Up to ``count`` different servers that have room, drawn with their free space as the weight.

    The draw is that of Efraimidis and Spirakis, as a race: each server needs an exponential time at the
    rate of its weight, and the first ones are taken.
    """
    race = [
        (-math.log(1 - draw()) / server.free_bytes, server.id, server)
        for server in servers
        if has_room(server)
    ]
    return [server for _, _, server in sorted(race)[:count]]


def choose_sets(
    alive: Sequence[FileServer], replicas: int, count: int, draw: Draw = _random.random
) -> list[list[FileServer]]:
    """``count`` sets, primary first; none if no server has room."""
    with_room = [server for server in alive if has_room(server)]
    return [choose(with_room, replicas, draw) for _ in range(count)] if with_room else []


def distinct_bytes(sizes: Sequence[int], copies: int) -> int:
    """How much fits on servers of these sizes when everything is kept ``copies`` times, each time on
    another server (on all of them, if there are fewer)."""
    rest = sorted(sizes)
    copies = min(copies, len(rest))
    while copies > 1 and rest[-1] * copies > sum(rest):
        rest.pop()  # it can hold one copy of everything and still has room to spare
        copies -= 1
    return sum(rest) // copies if rest else 0
