"""The folder of a realm that runs on one machine, and the processes that belong to it.

::

    ROOT/realm.json        Settings: what the next ``dfs up`` must know to be the same realm
    ROOT/keys/ROLE.json    each service's keys (servers.keys), made at the first start
    ROOT/ROLE/db.sqlite    the databases of auth, directory and lock
    ROOT/files-N/          the chunks of file server N
    ROOT/log/NAME.log      one log a service, and the supervisor's own
    ROOT/run/              the lock and the control socket of the supervisor that runs now
"""

import errno
import os
import random
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from servers.durable import replace
from servers.keys import new_realm_keys, read_keys, write_keys
from servers.ports import Claims
from wire.errors import fail
from wire.sealing import fingerprint, public_key_of

DEFAULT_PORT = 7400
DEFAULT_FILE_SERVERS = 3
FILE_SERVERS_MAX = 256
LOG_BYTES_MAX = 16 * 1024 * 1024
"""A longer log is set aside as NAME.log.1 when its service starts."""


class Settings(msgspec.Struct, frozen=True):
    """``realm.json``. ``port`` is the first of consecutive ports, or 0: free ones were chosen."""

    host: str
    advertise: str
    """The host in the URLs that services and clients are told; empty: ``host``."""
    port: int
    replicas: int
    ports: dict[str, int]
    """By service name."""
    options: dict[str, dict[str, str]]
    """Options of ``dfs serve ROLE``, by role: ``{"directory": {"retention-seconds": "60"}}``."""

    @property
    def file_servers(self) -> int:
        """How many file servers the realm has on this machine."""
        return len(self.ports) - 3

    @property
    def feed_port(self) -> int:
        """Where feeds are polled: behind the file servers' ports. 0: any free one, each time."""
        return self.port + len(self.ports) if self.port else 0

    def url(self, name: str) -> str:
        """Where others reach the service ``name``."""
        return _url(self.advertise or self.host, self.ports[name])

    def local_url(self, name: str) -> str:
        """Where this machine reaches it."""
        return _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.ports[name])


class Changes(msgspec.Struct, frozen=True):
    """What ``dfs up`` was asked to have different; None stays as it is recorded, or as it is by default."""

    host: str | None = None
    advertise: str | None = None
    port: int | None = None
    file_servers: int | None = None
    replicas: int | None = None
    options: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Plan:
    """One process to run: ``command`` without the interpreter."""

    name: str
    role: str
    url: str
    local_url: str
    log: Path
    command: list[str]


class RealmRoot:
    """The paths and files of a realm's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.run = self.path / "run"

    def make(self) -> None:
        """Makes the folders, for their owner only. Raises OSError."""
        for folder in (self.path, self.run, self.path / "log"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def log(self, name: str) -> Path:
        """The log of a service or of the supervisor."""
        return self.path / "log" / f"{name}.log"

    def keys(self, role: str) -> Path:
        """The key file of a service."""
        return self.path / "keys" / f"{role}.json"

    def make_keys(self) -> None:
        """Makes the realm's keys unless it has them: ``auth.json``, written last, says that all are there."""
        if self.keys("auth").exists():
            return
        made = new_realm_keys()
        for role in ("directory", "lock", "files", "auth"):
            write_keys(self.keys(role), made[role])

    def fingerprint(self) -> str:
        """The fingerprint of the realm's public key, for people to compare."""
        return fingerprint(public_key_of(read_keys(self.keys("auth")).private_key))

    def read_settings(self) -> Settings | None:
        """The recorded settings; None if the realm was never started. Raises EINVAL if they are damaged."""
        path = self.path / "realm.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Settings)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise fail(errno.EINVAL, f"{path} is damaged: {error}") from error

    def settings(self, changes: Changes, claims: Claims) -> Settings:
        """The settings with ``changes``. Ports that are chosen are claimed."""
        return _merge(self.read_settings(), changes, claims)

    def record(self, settings: Settings) -> None:
        """The settings are these from now on, durably."""
        replace(self.path / "realm.json", msgspec.json.format(msgspec.json.encode(settings)) + b"\n")

    def plans(self, settings: Settings) -> list[Plan]:
        """The processes of the realm."""
        return [self._plan(settings, name) for name in settings.ports]

    def _plan(self, settings: Settings, name: str) -> Plan:
        role = name.partition("-")[0]
        options = {
            "host": settings.host,
            "port": str(settings.ports[name]),
            "keys": str(self.keys(role)),
        }
        if role == "files":
            options |= {"root": str(self.path / name), "name": name, "url": settings.url(name)}
        else:
            options["database"] = str(self.path / role / "db.sqlite")
        if role in ("auth", "files"):
            options["directory-url"] = settings.url("directory")
        if role == "auth":
            options["lock-url"] = settings.url("lock")
        if role == "directory":
            options |= {"replicas": str(settings.replicas), "feed-port": str(settings.feed_port)}
        options |= settings.options.get(role, {})
        command = ["-m", "dfs", "serve", role]
        command += [word for key, value in options.items() for word in (f"--{key}", value)]
        return Plan(name, role, settings.url(name), settings.local_url(name), self.log(name), command)


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _merge(old: Settings | None, changes: Changes, claims: Claims) -> Settings:
    count = changes.file_servers or (old.file_servers if old else DEFAULT_FILE_SERVERS)
    if not 1 <= count <= FILE_SERVERS_MAX:
        raise fail(errno.EINVAL, f"a realm has 1 to {FILE_SERVERS_MAX} file servers on a machine")
    names = ["auth", "directory", "lock", *(f"files-{number}" for number in range(1, count + 1))]
    host = changes.host or (old.host if old else "127.0.0.1")
    port = changes.port if changes.port is not None else (old.port if old else DEFAULT_PORT)
    if port:
        ports = {name: port + number for number, name in enumerate(names)}
    else:
        ports = _free_ports(claims, host, names, old.ports if old and not old.port else {})
    advertise = changes.advertise if changes.advertise is not None else (old.advertise if old else "")
    if not advertise and host in ("0.0.0.0", "::"):
        advertise = socket.getfqdn()
    options = {role: dict(values) for role, values in old.options.items()} if old else {}
    for role, values in changes.options.items():
        options[role] = options.get(role, {}) | values
    replicas = changes.replicas or (old.replicas if old else min(2, count))
    return Settings(host, advertise, port, replicas, ports, options)


def _free_ports(claims: Claims, host: str, names: Iterable[str], recorded: dict[str, int]) -> dict[str, int]:
    """A port a name. They lie below the range of outgoing connections, so that none of those takes the
    port of a service that is being restarted."""
    ports: dict[str, int] = {}
    for name in names:
        port = recorded.get(name)
        while port is None or port in ports.values():
            candidate = random.randrange(10000, 32000)
            if claims.take(host, candidate):
                port = candidate
        ports[name] = port
    return ports


def rotate(log: Path) -> None:
    """Sets a log aside that has become long."""
    try:
        if log.stat().st_size > LOG_BYTES_MAX:
            log.rename(log.with_name(log.name + ".1"))
    except FileNotFoundError:
        pass


def tail(log: Path, lines: int = 12) -> str:
    """The end of a log, for people."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def child_environment() -> dict[str, str]:
    """The environment in which ``python -m dfs`` finds this same code, installed or not."""
    environment = dict(os.environ)
    code = Path(__file__).resolve().parent.parent
    if code.name not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{code}{os.pathsep}{known}" if known else str(code)
    return environment


def python() -> str:
    """The interpreter that runs the services."""
    return sys.executable or "python3"
