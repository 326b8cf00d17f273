"""``dfs locks``: who holds which file, and who waits for it."""

import click
import msgspec

from dfs.places import realm_option
from wire.limits import OPS_MAX


class Waiting(msgspec.Struct, frozen=True):
    """Somebody in the queue; ``since`` in seconds since the epoch."""

    holder: str
    since: float


class Lock(msgspec.Struct, frozen=True):
    """A lock as it is printed. ``path`` is None where the user may not walk; it is shown if others wait."""

    ino: int
    path: str | None
    holder: str
    since: float
    expires_in_seconds: float
    queue: list[Waiting]


@click.command()
@realm_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of a table.")
@click.option("--break", "broken", type=click.IntRange(min=1), metavar="INO", help="End this lock (admins).")
def locks(realm: str, as_json: bool, broken: int | None) -> None:
    """Show who holds which file, and who waits. With --break end one of them first."""
    from dfs.logins import own_services

    with own_services(realm) as services:
        if broken is not None:
            services.lock.break_lock(broken)
        answer = services.lock.locks()
        found = answer.locks
        inos = [lock.ino for lock in found]
        paths = [
            path
            for first in range(0, len(inos), OPS_MAX)
            for path in services.directory.paths(inos[first : first + OPS_MAX])
        ]
    shown = [
        Lock(
            lock.ino,
            None if path is None else path.decode(errors="replace"),
            f"{lock.user}@{lock.client}",
            lock.since,
            lock.expires_in_seconds,
            [Waiting(f"{waiter.user}@{waiter.client}", waiter.since) for waiter in lock.queue],
        )
        for lock, path in zip(found, paths, strict=True)
        if path is not None or lock.queue  # mounts keep numbers locked for files that are still to be made
    ]
    if answer.more:
        click.echo("There are more locks and waiters than are shown here.", err=True)
    if as_json:
        click.echo(msgspec.json.encode(shown).decode())
    else:
        _print(shown)


def _print(shown: list[Lock]) -> None:
    import time

    from rich.console import Console
    from rich.table import Table

    if not shown:
        click.echo("No file is locked.")
        return
    table = Table("file", "inode", "holder", "for", "waiting")
    for lock in shown:
        waiting = "\n".join(f"{number}. {waiter.holder}" for number, waiter in enumerate(lock.queue, 1))
        table.add_row(
            lock.path or "(not yours to see)",
            str(lock.ino),
            lock.holder,
            f"{time.time() - lock.since:.0f} s",
            waiting,
        )
    Console().print(table)
