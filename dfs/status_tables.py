"""``dfs status`` for people."""

import time

from rich.console import Console
from rich.table import Table

from dfs.status import Service, Status

_STYLES = {
    "running": "green",
    "alive": "green",
    "mounted": "green",
    "starting": "yellow",
    "suspect": "yellow",
    "stopped": "yellow",
    "dead": "red",
}


def show(status: Status) -> None:
    """Prints tables of the services (with their first and their further copies) and of the mounts, and a
    line on the chunks."""
    console = Console()
    console.print(f"Realm {status.realm}")
    console.print(_services(status.services))
    if chunks := status.chunks:
        console.print(
            f"{chunks.total} chunks, {chunks.replicas} copies wanted; {chunks.lacking} lack copies,"
            f" {chunks.condemned} wait for deletion."
        )
    if status.mounts:
        console.print(_mounts(status))
    else:
        console.print("No mounts.")


def _services(services: list[Service]) -> Table:
    table = Table("service", "state", "pid", "address", "copies", "free", "heartbeat")
    for service in services:
        state = _coloured(service.state)
        if service.health and service.state == "running" and service.health != "alive":
            state += f", {_coloured(service.health)}"
        copies = service.replicas
        table.add_row(
            service.name,
            state,
            str(service.pid or ""),
            service.url.partition("://")[2],
            f"{copies.primaries} + {copies.secondaries}" if copies else "",
            _of(service.free_bytes, service.total_bytes),
            "" if service.heartbeat_age_seconds is None else f"{service.heartbeat_age_seconds:.1f} s",
        )
    return table


def _mounts(status: Status) -> Table:
    table = Table()
    for name in ("mountpoint", "state", "user", "realm", "binding", "pid", "for", "not committed"):
        # Where it is too narrow, these two are folded, nothing is cut off, and no word is broken.
        table.add_column(
            name.replace(" ", "\n"), overflow="fold", no_wrap=name not in ("mountpoint", "realm")
        )
    for mount in status.mounts:
        table.add_row(
            mount.mountpoint,
            _coloured(mount.state) + (",\nno lease" if mount.leased is False else ""),
            mount.user,
            mount.realm.partition("://")[2],
            f"{mount.binding},\npassthrough" if mount.passthrough else mount.binding,
            str(mount.pid),
            f"{max(0.0, time.time() - mount.started):.0f} s",
            "?" if mount.unsaved is None else f"{mount.unsaved} files" if mount.unsaved else "",
        )
    return table


def _coloured(state: str) -> str:
    style = _STYLES.get(state, "")
    return f"[{style}]{state}[/{style}]" if style else state


def _of(free: int | None, total: int | None) -> str:
    if free is None or total is None:
        return ""
    return f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB"
