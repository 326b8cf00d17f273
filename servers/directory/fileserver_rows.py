"""The durable side of file servers: their rows."""

from sqlalchemy import Connection, case, exists, func, insert, select, update

from servers.directory.fileservers import FileServer
from servers.directory.schema import meta, replicas, servers
from wire.messages.directory import Heartbeat, Register


def read_all(connection: Connection) -> list[FileServer]:
    """Every server that ever registered."""
    return [
        FileServer(row.id, row.name, row.url, row.pid, row.total_bytes, row.free_bytes, bool(row.written_off))
        for row in connection.execute(select(servers))
    ]


def register(connection: Connection, message: Register) -> FileServer:
    """The row of this identity, new or taken over; it is not written off any more."""
    values = {
        "name": message.name,
        "url": message.url,
        "pid": message.pid,
        "total_bytes": message.total_bytes,
        "free_bytes": message.free_bytes,
        "written_off": 0,
    }
    server_id = connection.scalar(select(servers.c.id).where(servers.c.identity == message.identity))
    if server_id is None:
        server_id = _next_id(connection)
        row = {"id": server_id, "identity": message.identity, "inventory": 0, **values}
        connection.execute(insert(servers), row)
    else:
        connection.execute(update(servers).where(servers.c.id == server_id).values(values))
    return FileServer(
        server_id, message.name, message.url, message.pid, message.total_bytes, message.free_bytes, False
    )


def save_space(connection: Connection, server_id: int, message: Heartbeat) -> None:
    """What is told of the server after a restart, until it is heard."""
    space = {"total_bytes": message.total_bytes, "free_bytes": message.free_bytes}
    connection.execute(update(servers).where(servers.c.id == server_id).values(space))


def write_off(connection: Connection, ids: list[int]) -> None:
    """Marks the servers."""
    marked = servers.c.id.in_(ids) & (servers.c.written_off == 0)
    connection.execute(update(servers).where(marked).values(written_off=1))


def count_replicas(connection: Connection) -> dict[int, tuple[int, int]]:
    """How many chunks each server has as the primary (the lowest rank there is), and as a secondary."""
    other = replicas.alias()
    lower = exists().where(other.c.chunk == replicas.c.chunk, other.c.rank < replicas.c.rank)
    primary = case((replicas.c.rank == 0, 1), (lower, 0), else_=1)
    query = select(replicas.c.server, func.sum(primary), func.count()).group_by(replicas.c.server)
    return {server: (primaries, total - primaries) for server, primaries, total in connection.execute(query)}


def _next_id(connection: Connection) -> int:
    key = meta.c.key == "next_server"
    server_id: int | None = connection.scalar(select(meta.c.value).where(key))
    if server_id is None:
        connection.execute(insert(meta), {"key": "next_server", "value": 2})
        return 1
    connection.execute(update(meta).where(key).values(value=server_id + 1))
    return server_id
