"""``dfs where``: where a file's content is, and who may write it."""

import errno
import os
from pathlib import Path

import click

from mount.control import Request, Where, ask
from mount.registry import MountRecord, records
from wire.errors import fail


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def where(path: Path, as_json: bool) -> None:
    """Show a file's inode, version and lock, and of each chunk its id, primary and secondaries."""
    import msgspec

    record = _mount_of(path)
    found = ask(record.control, Request("where", os.lstat(path).st_ino)).where
    assert found is not None, "the mount answers what it was asked"
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
    else:
        _show(path, found)


def _mount_of(path: Path) -> MountRecord:
    """The mount that ``path`` is in. Raises ENOENT."""
    os.lstat(path)  # a mistake in the path is said first
    place = path.parent.resolve() / path.name
    living = {record.mountpoint: record for record in records() if record.is_alive}
    for folder in (place, *place.parents):
        if str(folder) in living:
            return living[str(folder)]
    raise fail(errno.ENOENT, f"{path} is in no mount of DFS")


def _show(path: Path, found: Where) -> None:
    from rich.console import Console
    from rich.table import Table

    if found.local_version == 0:
        local = "none"
    elif found.local_dirty:
        local = "being written here"
    else:
        current = found.local_version == found.version
        local = "current" if current else f"dated, of version {found.local_version}"
        if found.local_lacking:
            local += f", lacks {found.local_lacking} chunks"
    console = Console()
    console.print(f"{path}: inode {found.ino}, {found.size} bytes")
    console.print(f"version      {found.version} (the directory's timestamp, ns)", highlight=False)
    console.print(f"local copy   {local}", highlight=False)
    console.print(f"write lock   {found.lock_holder or 'free'}", highlight=False)
    table = Table("chunk", "bytes", "id", "primary", "secondaries")
    for chunk in found.chunks:
        servers = [f"{server.id} at {server.url}" for server in chunk.servers]
        table.add_row(
            str(chunk.index),
            str(chunk.size),
            chunk.id,
            servers[0] if servers else "none",
            "\n".join(servers[1:]),
        )
    console.print(table)
