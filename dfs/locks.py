"""``dfs locks``: who holds which file or a range of it, and who waits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click
import msgspec

from dfs.places import realm_option
from wire.limits import OPS_MAX
from wire.messages.lock import LockInfo, Locks, RangeInfo

if TYPE_CHECKING:
    from dfs.logins import Services

END = 2**63 - 1
"""The last byte of a range that goes to the end of the file."""


class Waiting(msgspec.Struct, frozen=True):
    """Somebody in the queue; ``since`` in seconds since the epoch."""

    holder: str
    since: float


class ProgramLock(msgspec.Struct, frozen=True):
    """What a program has, or waits for. ``kind`` is ``fcntl`` or ``flock``; ``last`` is included, and None if
    it goes to the end of the file; ``pid`` is of the holder's machine."""

    holder: str
    kind: str
    is_exclusive: bool
    first: int
    last: int | None
    pid: int
    since: float
    is_waiting: bool


class Lock(msgspec.Struct, frozen=True):
    """The locks of an inode as they are printed. ``path`` is None where the user may not walk; it is shown if
    others wait, or programs lock it. Without a write lock, ``holder``, ``since`` and
    ``expires_in_seconds`` are None."""

    ino: int
    path: str | None
    holder: str | None
    since: float | None
    expires_in_seconds: float | None
    queue: list[Waiting]
    programs: list[ProgramLock]


@click.command()
@realm_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.option(
    "--break", "broken", type=click.IntRange(min=1), metavar="INO", help="End the locks of this (admins)."
)
def locks(realm: str, as_json: bool, broken: int | None) -> None:
    """Show who holds which file, and who waits. With --break end the locks of one first."""
    from dfs.logins import own_services

    with own_services(realm) as services:
        if broken is not None:
            services.lock.break_lock(broken)
        answer = services.lock.locks()
        inos = {lock.ino for lock in answer.locks} | {info.ino for info in answer.ranges}
        paths = _paths(services, inos)
    shown = _joined(answer, paths)
    if answer.more:
        click.echo("There are more locks and waiters than are shown here.", err=True)
    if as_json:
        click.echo(msgspec.json.encode(shown).decode())
    else:
        _print(shown)


def _paths(services: "Services", inos: Iterable[int]) -> dict[int, str | None]:
    ordered = sorted(inos)
    found: dict[int, str | None] = {}
    for first in range(0, len(ordered), OPS_MAX):
        batch = ordered[first : first + OPS_MAX]
        for ino, path in zip(batch, services.directory.paths(batch), strict=True):
            found[ino] = None if path is None else path.decode(errors="replace")
    return found


def _joined(answer: Locks, paths: Mapping[int, str | None]) -> list[Lock]:
    locks = {lock.ino: lock for lock in answer.locks}
    programs: defaultdict[int, list[ProgramLock]] = defaultdict(list)
    for info in answer.ranges:
        programs[info.ino].append(_program_lock(info))
    shown = [_lock(ino, path, locks.get(ino), programs[ino]) for ino, path in paths.items()]
    # Mounts keep numbers locked for files that are still to be made.
    return [lock for lock in shown if lock.path is not None or lock.queue or lock.programs]


def _lock(ino: int, path: str | None, lock: LockInfo | None, programs: list[ProgramLock]) -> Lock:
    if lock is None:
        return Lock(ino, path, None, None, None, [], programs)
    queue = [Waiting(f"{waiter.user}@{waiter.client}", waiter.since) for waiter in lock.queue]
    holder = f"{lock.user}@{lock.client}"
    return Lock(ino, path, holder, lock.since, lock.expires_in_seconds, queue, programs)


def _program_lock(info: RangeInfo) -> ProgramLock:
    range = info.range
    return ProgramLock(
        f"{info.user}@{info.client}",
        "flock" if range.is_flock else "fcntl",
        range.is_exclusive,
        range.first,
        None if range.last == END else range.last,
        range.pid,
        info.since,
        info.is_waiting,
    )


def _print(shown: list[Lock]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not shown:
        click.echo("No file is locked.")
        return
    table = Table()
    for name in ("file", "inode", "lock", "holder", "for", "waiting"):
        table.add_column(name, overflow="fold")
    for lock in shown:
        for row in _rows(lock):
            table.add_row(lock.path or "(not yours to see)", str(lock.ino), *row)
    Console().print(table)


def _rows(lock: Lock) -> list[tuple[str, str, str, str]]:
    """The write lock with its queue, then what programs have, the first of it with all that they wait for."""
    rows: list[tuple[str, str, str, str]] = []
    if lock.holder is not None and lock.since is not None:
        waiting = _numbered(waiter.holder for waiter in lock.queue)
        rows.append(("write lock", lock.holder, _age(lock.since), waiting))
    held = [
        (_words(program), f"{program.holder}, pid {program.pid}", _age(program.since))
        for program in lock.programs
        if not program.is_waiting
    ]
    waits = _numbered(
        f"{program.holder}: {_words(program)}" for program in lock.programs if program.is_waiting
    )
    if waits and not held:
        held = [("reserved for who waits", "", "")]
    return rows + [(*row, "" if number else waits) for number, row in enumerate(held)]


def _numbered(words: Iterable[str]) -> str:
    return "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _words(program: ProgramLock) -> str:
    return f"{program.kind} {'exclusive' if program.is_exclusive else 'shared'}, {_bytes(program)}"


def _bytes(program: ProgramLock) -> str:
    if program.last is None:
        return f"from byte {program.first}" if program.first else "whole file"
    if program.first == program.last:
        return f"byte {program.first}"
    return f"bytes {program.first}-{program.last}"


def _age(since: float) -> str:
    import time

    return f"{time.time() - since:.0f} s"
