"""``dfs serve ROLE``: one service in the foreground, logging to standard error, until SIGTERM.

This is what the supervisor starts, and what a systemd unit calls (``ExecStart=dfs serve directory …``).
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click
from msgspec import Meta

from dfs.numbers import Number
from servers.auth.config import AuthConfig
from servers.directory.config import DirectoryConfig
from servers.files.config import FilesConfig
from servers.keys import ServiceKeys, read_keys
from servers.lock.config import LockConfig
from servers.web import Server

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Process:
    """The options that every service has."""

    host: str
    port: int
    threads: int
    log_level: str
    lifeline_fd: int | None

    def serve(self, make: Callable[[], Server]) -> None:
        """Serves until a signal or the end of the lifeline."""
        from servers.logs import set_up_logging
        from servers.run import exit_with_parent, serve

        os.umask(0o077)
        set_up_logging(self.log_level)
        if self.lifeline_fd is not None:
            exit_with_parent(self.lifeline_fd)
        serve(make, self.host, self.port, self.threads)


def _service(port: int, threads: int) -> Callable[[Command], Command]:
    """The options that every service has."""
    options = [
        click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen."),
        click.option("--port", type=click.IntRange(1, 65535), default=port, show_default=True),
        click.option("--keys", type=click.Path(path_type=Path), required=True, help="The key file."),
        click.option("--threads", type=click.IntRange(1, 1024), default=threads, show_default=True),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
        ),
        click.option("--lifeline-fd", type=int, hidden=True, help="End when this pipe is closed."),
    ]
    return _all(options)


def _tuning(config: type[Any]) -> Callable[[Command], Command]:
    """An option for each number in a service's config, with the default and the bounds that stand there."""
    hints = get_type_hints(config, include_extras=True)
    return _all(
        [
            click.option(
                f"--{field.name.replace('_', '-')}",
                type=_within(hints[field.name].__metadata__[0], type(field.default)),
                default=field.default,
                show_default=True,
            )
            for field in dataclasses.fields(config)
            if isinstance(field.default, int | float)
        ]
    )


def _within(bounds: Meta, kind: type) -> click.IntRange | click.FloatRange:
    least, most = bounds.ge, bounds.le
    if kind is int:
        return click.IntRange(None if least is None else int(least), None if most is None else int(most))
    return Number(least, most)


def _all(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_database = click.option(
    "--database", required=True, metavar="PATH|URL", help="An SQLite file, or a URL of SQLAlchemy's."
)
_directory_url = click.option("--directory-url", required=True, metavar="URL")


def _url(database: str) -> str:
    from servers.database import sqlite_url

    return database if "://" in database else sqlite_url(Path(database).absolute())


def _split(options: dict[str, Any]) -> tuple[Process, ServiceKeys, dict[str, Any]]:
    """The process's options, the keys, and the rest: the service's own."""
    names = [field.name for field in dataclasses.fields(Process)]
    process = Process(**{name: options.pop(name) for name in names})
    return process, read_keys(options.pop("keys")), options


@click.group()
def serve() -> None:
    """Run one service alone, in the foreground."""


@serve.command()
@_service(port=7400, threads=32)
@_database
@_directory_url
@click.option("--lock-url", required=True, metavar="URL")
@_tuning(AuthConfig)
def auth(database: str, **options: Any) -> None:
    """The authentication server: users, sessions, tickets."""
    from servers.auth.app import make_server

    process, keys, own = _split(options)
    process.serve(lambda: make_server(AuthConfig(keys=keys, database=_url(database), **own)))


@serve.command()
@_service(port=7401, threads=96)
@_database
@_tuning(DirectoryConfig)
def directory(database: str, **options: Any) -> None:
    """The directory server: names, attributes, versions, and which chunk is where."""
    from servers.directory.app import make_server

    process, keys, own = _split(options)
    process.serve(
        lambda: make_server(
            DirectoryConfig(keys=keys, database=_url(database), feed_host=process.host, **own)
        )
    )


@serve.command()
@_service(port=7402, threads=96)
@_database
@_tuning(LockConfig)
def lock(database: str, **options: Any) -> None:
    """The lock server: one writer a file, and a queue."""
    from servers.lock.app import make_server

    process, keys, own = _split(options)
    process.serve(lambda: make_server(LockConfig(keys=keys, database=_url(database), **own)))


@serve.command()
@_service(port=7403, threads=64)
@click.option("--root", type=click.Path(path_type=Path), required=True, help="The folder of its chunks.")
@click.option("--name", required=True, help="What people call it.")
@click.option("--url", required=True, help="Where others reach it.")
@_directory_url
@_tuning(FilesConfig)
def files(**options: Any) -> None:
    """A file server: stores chunks."""
    from dfs.memory import keep_freed_memory
    from servers.files.app import make_server

    keep_freed_memory()
    process, keys, own = _split(options)
    process.serve(lambda: make_server(FilesConfig(keys=keys, **own)))
