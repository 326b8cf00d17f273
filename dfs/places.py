"""Where the ``dfs`` command finds things when it is not told: the realm's folder, the realm's URL."""

import os
from pathlib import Path

import click

DEFAULT_REALM = "http://127.0.0.1:7400"


def default_root() -> Path:
    """The folder of this user's own realm: $XDG_DATA_HOME/dfs."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "dfs"


root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=default_root,
    help="The realm's folder.  [default: $XDG_DATA_HOME/dfs]",
)

realm_option = click.option(
    "--realm",
    envvar="DFS_REALM",
    default=DEFAULT_REALM,
    metavar="URL",
    show_default=True,
    show_envvar=True,
    help="The realm's URL.",
)
