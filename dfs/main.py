"""The ``dfs`` command: finds the verb's module, and says in one sentence what went wrong.

Verbs are imported when they are called, and their modules import what is heavy inside the commands, so
that the command starts fast. Errors are ``OSError`` everywhere; here, and only here, they become a
sentence on standard error and an exit status (dfs.exits).
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from dfs import exits

VERBS = {
    "up": ("dfs.realm", "Start a realm: all services of a folder, on this machine."),
    "down": ("dfs.realm", "Stop the realm of a folder."),
    "stop": ("dfs.realm", "Stop one service of the realm."),
    "start": ("dfs.realm", "Start a stopped service again."),
    "serve": ("dfs.serve", "Run one service alone."),
    "status": ("dfs.status", "Show services, chunks and mounts."),
    "signup": ("dfs.users", "Become a user of a realm."),
    "login": ("dfs.users", "Open a session and save it."),
    "logout": ("dfs.users", "End the saved session."),
    "passwd": ("dfs.users", "Change your password."),
    "user": ("dfs.users", "List users, or change one (admins)."),
    "mount": ("dfs.mount", "Mount the realm on a directory."),
    "umount": ("dfs.mount", "Unmount it."),
    "locks": ("dfs.locks", "Show who holds which file, and who waits."),
    "where": ("dfs.where", "Show where a file's chunks are stored."),
    "bench": ("dfs.bench", "Measure how fast a directory is."),
    "demo": ("dfs.demo", "Show it all on this machine."),
}
"""The module of each verb and its line in the help. In its module the command is named as the verb."""


class Verbs(click.Group):
    """Loads a verb's module when it is wanted; the help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table as it stands."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 failed, 2 wrong command line, 3 not reachable, 4 wrong password or not "
    "logged in, 5 not permitted, 6 there already or in use, 7 not found.",
)
@click.version_option(package_name="dfs")
def cli() -> None:
    """A distributed file system that mounts as a local directory."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits with its status."""
    status = _run(arguments)
    gc.freeze()  # else the interpreter, when it ends, looks through all objects again and again for cycles
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # Without standalone mode click returns the status of ctx.exit(), or what the command returned.
        result = cli.main(args=arguments, prog_name="dfs", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("dfs: interrupted", err=True)
        return exits.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Nothing more may be written when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.GENERAL
    except OSError as error:
        click.echo(f"dfs: {exits.sentence_of(error)}", err=True)
        return exits.status_of(error)
    return result if isinstance(result, int) else exits.DONE
