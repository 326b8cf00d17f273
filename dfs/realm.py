"""``dfs up``, ``down``, ``stop``, ``start``: a realm whose services run on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfs.places import root_option

if TYPE_CHECKING:
    from servers.supervision import Changes
    from servers.supervision_control import Told


@click.command()
@root_option
@click.option("--host", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--advertise", metavar="HOST", help="The host that clients are told.  [default: the same]")
@click.option(
    "--port",
    type=click.IntRange(0, 65000),
    help="The first port; 0 chooses free ones, once.  [default: 7400]",
)
@click.option("--file-servers", type=click.IntRange(min=1), help="Number of file servers.  [default: 3]")
@click.option("--replicas", type=click.IntRange(1, 8), help="Copies of each chunk.  [default: 2]")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="ROLE.OPTION=VALUE",
    help="An option of `dfs serve ROLE`, as directory.retention-seconds=60. Recorded.",
)
@click.option("--detach", is_flag=True, help="Return when the realm is ready; it runs in the background.")
@click.option("--ready-fd", type=int, hidden=True)
def up(
    root: Path,
    host: str | None,
    advertise: str | None,
    port: int | None,
    file_servers: int | None,
    replicas: int | None,
    assignments: tuple[str, ...],
    detach: bool,
    ready_fd: int | None,
) -> None:
    """Start a realm: all services of a folder, on this machine.

    What is given once is recorded in the folder and holds until it is given again.
    """
    from dfs import background
    from servers.supervision import Changes, RealmRoot
    from servers.supervisor import run

    realm = RealmRoot(root)
    changes = Changes(host, advertise, port, file_servers, replicas, _options(assignments))
    if detach:
        realm.make()
        words = ["up", "--root", str(realm.path), *_words(changes)]
        told = background.start(words, realm.log("background")).realm
        assert told is not None, "a realm tells how it is"
        _announce(told)
    elif ready_fd is None:
        run(realm, changes, _announce)
    else:
        with background.telling(ready_fd) as tell:
            run(realm, changes, lambda told: tell(background.Word(realm=told)))


def _options(assignments: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """``--set`` by role, checked against the options that ``dfs serve`` has. Raises UsageError."""
    from dfs.serve import serve

    options: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        role, _, option = key.partition(".")
        command = serve.commands.get(role)
        known = {name: one for one in command.params for name in one.opts} if command else {}
        if f"--{option}" not in known or not value:
            raise click.BadParameter(f"{assignment!r} is no ROLE.OPTION=VALUE with an option of `dfs serve`")
        try:
            known[f"--{option}"].type.convert(value, None, None)
        except click.BadParameter as error:
            raise click.BadParameter(error.message, param_hint=f"'--set {key}'") from error
        options.setdefault(role, {})[option] = value
    return options


def _words(changes: "Changes") -> list[str]:
    """The options of ``dfs up`` that say ``changes``."""
    values = {
        "--host": changes.host,
        "--advertise": changes.advertise,
        "--port": changes.port,
        "--file-servers": changes.file_servers,
        "--replicas": changes.replicas,
    }
    words = [word for option, value in values.items() if value is not None for word in (option, str(value))]
    for role, options in changes.options.items():
        for option, value in options.items():
            words += ["--set", f"{role}.{option}={value}"]
    return words


def _announce(told: "Told") -> None:
    click.echo(f"The realm is ready at {told.realm}")
    click.echo(f"Its key's fingerprint is {told.fingerprint}")


@click.command()
@root_option
def down(root: Path) -> None:
    """Stop the realm of a folder; returns when all of its processes have ended."""
    from servers.supervision import RealmRoot
    from servers.supervision_control import Ask, RootLock, ask

    realm = RealmRoot(root)
    ask(realm, Ask("down"))
    RootLock(realm).wait()
    click.echo(f"The realm in {realm.path} has ended.")


@click.command()
@click.argument("name")
@root_option
def stop(name: str, root: Path) -> None:
    """Stop the service NAME; it stays stopped until `dfs start`."""
    from servers.supervision import RealmRoot
    from servers.supervision_control import Ask, ask

    ask(RealmRoot(root), Ask("stop", name))
    click.echo(f"{name} is stopped.")


@click.command()
@click.argument("name")
@root_option
def start(name: str, root: Path) -> None:
    """Start the stopped service NAME again; returns when it answers."""
    from servers.supervision import RealmRoot
    from servers.supervision_control import Ask, ask

    ask(RealmRoot(root), Ask("start", name))
    click.echo(f"{name} is running.")
