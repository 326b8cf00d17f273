"""``dfs signup``, ``login``, ``logout``, ``passwd``, ``user``: who uses the realm."""

import errno
import getpass
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfs.places import realm_option

if TYPE_CHECKING:
    from wire.messages.auth import UserInfo

password_option = click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The password's file. Else $DFS_PASSWORD, else it is asked for.",
)


def me() -> str:
    return getpass.getuser()


user_argument = click.argument("user", default=me, metavar="[USER]")


@click.command()
@user_argument
@realm_option
@password_option
def signup(user: str, realm: str, password_file: Path | None) -> None:
    """Become a user of a realm, with the name USER (or your local one). The first one is its admin."""
    from clients import auth
    from clients.http import HttpWire
    from dfs import logins

    with closing(HttpWire()) as wire:
        auth.fetch_realm(realm, wire, logins.trust(), logins.REACH_SECONDS)
        password = logins.password(password_file, "DFS_PASSWORD", f"New password for {user}", confirm=True)
        auth.signup(realm, user, password, wire, logins.trust())
    click.echo(f"{user} is a user of {realm} now; `dfs login` opens a session.")


@click.command()
@user_argument
@realm_option
@password_option
def login(user: str, realm: str, password_file: Path | None) -> None:
    """Open a session of USER (or of your local name) and save it for other commands and for mounts."""
    from dfs import logins

    session = logins.log_in(realm, user, password_file)
    click.echo(f"Logged in to {realm} as {user} (uid {session.uid}{', admin' if session.admin else ''}).")


@click.command()
@click.argument("user", default="")
@realm_option
def logout(user: str, realm: str) -> None:
    """End the saved session, and with it the mounts that were made with it."""
    from dfs import logins

    trust = logins.trust()
    with logins.saved_login(realm, user) as saved:
        saved.auth.logout()
        trust.forget(realm, saved.session.user)
    click.echo(f"{saved.session.user} is logged out of {realm}.")


@click.command()
@click.argument("user", default="")
@realm_option
@password_option
@click.option(
    "--new-password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The new password's file. Else $DFS_NEW_PASSWORD, else it is asked for.",
)
def passwd(user: str, realm: str, password_file: Path | None, new_password_file: Path | None) -> None:
    """Change your password. All of your other sessions end."""
    from dfs import logins

    with logins.saved_login(realm, user) as saved:
        old = logins.password(password_file, "DFS_PASSWORD", "Old password")
        new = logins.password(new_password_file, "DFS_NEW_PASSWORD", "New password", confirm=True)
        saved.auth.change_password(old, new)
    click.echo(f"{saved.session.user} has a new password.")


@click.command()
@click.argument("name", required=False)
@realm_option
@click.option("--admin/--no-admin", default=None, help="May change users and break locks.")
@click.option("--trusted/--no-trusted", default=None, help="May mount for many users (--allow-other).")
@click.option("--gids", metavar="GID,…", help="The user's groups, the primary one first.")
@click.option("--json", "as_json", is_flag=True, help="Print the users as JSON.")
def user(
    name: str | None, realm: str, admin: bool | None, trusted: bool | None, gids: str | None, as_json: bool
) -> None:
    """List the realm's users or, with NAME, show or change one. For admins."""
    from dfs import logins
    from wire.errors import fail
    from wire.messages.auth import ChangeUser

    groups = _numbers(gids) if gids is not None else None
    change = ChangeUser(gids=groups, admin=admin, trusted=trusted)
    if name is None and change != ChangeUser():
        raise click.UsageError("whose? Give the user's NAME.")
    with logins.saved_login(realm) as saved:
        users = saved.auth.users()
        if name is not None:
            users = [user for user in users if user.user == name]
            if not users:
                raise fail(errno.ENOENT, f"there is no user {name!r}")
            if change != ChangeUser():
                users = [saved.auth.change_user(users[0].uid, change)]
    _show(users, as_json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers like 1000,27") from None


def _show(users: "list[UserInfo]", as_json: bool) -> None:
    import msgspec
    from rich.console import Console
    from rich.table import Table

    if as_json:
        click.echo(msgspec.json.encode(users).decode())
        return
    table = Table("user", "uid", "gids", "rights")
    for user in users:
        rights = [word for word, has in (("admin", user.admin), ("trusted", user.trusted)) if has]
        table.add_row(user.user, str(user.uid), ",".join(map(str, user.gids)), ", ".join(rights))
    Console().print(table)
