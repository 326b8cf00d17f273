"""The control socket of a mount: how `dfs status`, `dfs where` and `dfs umount` talk to it.

One JSON message a line each way over a Unix socket that only its owner may open. Verbs: ``status``,
``write-back`` (commits what is dirty, then as status), ``where`` (with ``ino``), ``drop-cache``, ``replace``
(has the keeper run another version's worker: this one is ended right after the answer, or before).

The mount's end is mount.control_server: a command that only asks does not import what a mount is made of.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from wire.errors import Problem, fail, from_problem
from wire.messages.common import ServerAddress

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
        with address_of(Path(control)) as address:
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
def address_of(path: Path) -> Iterator[str]:
    """The socket's path, short however deep the state folder lies: an address has 108 bytes (unix(7))."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
