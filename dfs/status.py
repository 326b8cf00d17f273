"""``dfs status``: what runs, what is stored, what is mounted, as far as it can be known from here.

Of a realm that runs on this machine the supervisor tells everything. Of another one the directory tells
about file servers and chunks, if the user is logged in, and the other services say that they live.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from dfs.places import DEFAULT_REALM, root_option
from mount.registry import MountRecord, records
from wire.messages.common import Health
from wire.messages.directory import Servers, ServerState

if TYPE_CHECKING:
    from clients.session import Wire
    from mount.control import Reply
    from servers.supervision_control import Told

PROBE_SECONDS = 3.0


class Replicas(msgspec.Struct, frozen=True):
    """How many chunks a file server has, as the first and as another copy."""

    primaries: int
    secondaries: int


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """``state``: running, stopped, starting or dead. What comes after ``restarts`` is told of file servers
    that the directory knows; ``health``: alive, suspect or dead."""

    name: str
    role: str
    pid: int
    url: str
    state: str
    restarts: int | None = None
    replicas: Replicas | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    heartbeat_age_seconds: float | None = None
    health: str | None = None


class Chunks(msgspec.Struct, frozen=True):
    """``lacking`` have fewer than ``replicas`` living copies; ``condemned`` ones wait for deletion."""

    total: int
    lacking: int
    condemned: int
    replicas: int


class Mount(msgspec.Struct, frozen=True):
    """A mount of this machine; ``state`` is mounted or dead. ``unsaved`` is how many of its files have
    content that is not committed, null if it does not say. ``leased``: the directory tells it what changes;
    false while it does not, null if it does not say, or is not to be told (``--consistency open``)."""

    mountpoint: str
    binding: str
    passthrough: bool
    pid: int
    realm: str
    user: str
    cache_dir: str
    control: str
    started: float
    worker_pid: int
    version: str
    state: str
    unsaved: int | None
    leased: bool | None


class Status(msgspec.Struct, frozen=True):
    """What ``dfs status --json`` prints. ``chunks`` is null while the directory does not tell."""

    realm: str
    services: list[Service]
    chunks: Chunks | None
    mounts: list[Mount]


@click.command()
@root_option
@click.option(
    "--realm",
    envvar="DFS_REALM",
    metavar="URL",
    show_envvar=True,
    help=f"A realm elsewhere.  [default: the one in the folder, or {DEFAULT_REALM}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object instead of tables.")
def status(root: Path, realm: str | None, as_json: bool) -> int:
    """Show the services, the chunks and the mounts. The exit status is 3 if the realm is not reachable."""
    from dfs import exits

    mounts = [_mount(record) for record in records()]
    found = local_status(root, realm) or _remote(realm or DEFAULT_REALM)
    shown = msgspec.structs.replace(found, mounts=mounts)
    if as_json:
        click.echo(msgspec.json.encode(shown).decode())
    else:
        from dfs.status_tables import show

        show(shown)
    reached = any(service.state == "running" for service in shown.services)
    return exits.DONE if reached else exits.NOT_REACHABLE


def _mount(record: MountRecord) -> Mount:
    alive = record.is_alive
    told = _ask(record) if alive else None
    return Mount(
        **msgspec.structs.asdict(record),
        state="mounted" if alive else "dead",
        unsaved=None if told is None else told.unsaved,
        leased=None if told is None else told.leased,
    )


def _ask(record: MountRecord) -> "Reply | None":
    from mount.control import Request, ask

    try:
        return ask(record.control, Request("status"), timeout_seconds=PROBE_SECONDS)
    except (OSError, msgspec.MsgspecError):
        return None


def local_status(root: Path, realm: str | None = None) -> Status | None:
    """What the supervisor of ``root`` says, without the mounts; None if it does not run, or runs another
    realm than ``realm``."""
    from servers.supervision import RealmRoot
    from servers.supervision_control import Ask, ask

    try:
        told = ask(RealmRoot(root), Ask("status"))
    except FileNotFoundError:
        return None
    if realm is not None and realm.rstrip("/") != told.realm:
        return None
    return Status(told.realm, list(_supervised(told)), _chunks(told.servers), [])


def _supervised(told: "Told") -> Iterator[Service]:
    known = {server.name: server for server in told.servers.servers} if told.servers else {}
    for child in told.services:
        service = Service(child.name, child.role, child.pid, child.url, child.state, child.restarts)
        server = known.pop(child.name, None) if child.role == "files" else None
        yield _with_storage(service, server) if server else service
    yield from map(_elsewhere, known.values())


def _remote(url: str) -> Status:
    """By asking the services; what needs a login is left out without one."""
    from clients.auth import fetch_realm
    from clients.http import HttpWire
    from dfs import logins

    with closing(HttpWire()) as wire:
        services = [_probed("auth", url, wire)]
        servers = None
        if services[0].state == "running":
            realm = fetch_realm(url, wire, logins.trust(), logins.REACH_SECONDS)
            services.append(_probed("directory", realm.directory_url, wire))
            services.append(_probed("lock", realm.lock_url, wire))
            try:
                with logins.own_services(url) as own:
                    servers = own.directory.servers()
            except OSError as error:
                click.echo(f"dfs: of the file servers nothing is known: {error.strerror}", err=True)
    if servers is not None:
        services += map(_elsewhere, sorted(servers.servers, key=lambda server: server.name))
    return Status(url, services, _chunks(servers), [])


def _probed(role: str, url: str, wire: "Wire") -> Service:
    """A service, by its /healthz."""
    from clients.session import call_plain

    try:
        answer = call_plain(wire, "GET", f"{url.rstrip('/')}/healthz", b"", PROBE_SECONDS)
        return Service(role, role, msgspec.json.decode(answer, type=Health).pid, url, "running")
    except (OSError, msgspec.MsgspecError):
        return Service(role, role, 0, url, "dead")


def _elsewhere(server: ServerState) -> Service:
    """A file server that no supervisor here runs."""
    state = "dead" if server.state == "dead" else "running"
    return _with_storage(Service(server.name, "files", server.pid, server.url, state), server)


def _with_storage(service: Service, server: ServerState) -> Service:
    return msgspec.structs.replace(
        service,
        replicas=Replicas(server.primaries, server.secondaries),
        total_bytes=server.total_bytes,
        free_bytes=server.free_bytes,
        heartbeat_age_seconds=server.heartbeat_age_seconds,
        health=server.state,
    )


def _chunks(servers: Servers | None) -> Chunks | None:
    if servers is None:
        return None
    return Chunks(servers.chunks, servers.lacking, servers.condemned, servers.replicas)
