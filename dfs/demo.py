"""``dfs demo``: everything on this machine, from nothing to a mounted directory, and away again."""

import getpass
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from servers.supervision import child_environment, python

HINTS = """
  {mount} is a directory of the realm {url}. In another terminal, try:

    cd {mount}
    cp -a /usr/share/doc/bash . && du -sh bash && git init bash
    {dfs} where {mount}/bash/copyright
    {dfs} status --root {root}
    {dfs} stop files-1 --root {root}     # everything is still there
    {dfs} start files-1 --root {root}

  These commands find the demo by its environment:

    export DFS_STATE={state} DFS_REALM={url}

  Ctrl-C ends the demo{fate}.
"""


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--root", type=click.Path(path_type=Path), help="Keep the realm here.  [default: temporary]")
@click.option("--file-servers", type=click.IntRange(1, 16), default=3, show_default=True)
def demo(mountpoint: Path | None, root: Path | None, file_servers: int) -> None:
    """Start a realm, a user and a mount; say what to try; put everything away on Ctrl-C."""
    with ExitStack() as stack:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        scratch = Path(tempfile.mkdtemp(prefix="dfs-demo-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        place = _mountpoint(mountpoint, scratch)
        realm = (root or scratch / "realm").absolute()
        state = realm / "demo" if root else scratch / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = _Runner(state, scratch / "cache" if root is None else state / "cache")
        told = run("up", "--root", str(realm), "--port", "0", "--file-servers", str(file_servers), "--detach")
        stack.callback(run, "down", "--root", str(realm))
        url = told.split("ready at ")[1].split()[0]
        run.log_in(url)
        run("mount", str(place), "--realm", url, "--cache-dir", str(run.cache))
        stack.callback(run, "umount", str(place))
        dfs = shutil.which("dfs") or f"{python()} -m dfs"
        fate = " and keeps the realm" if root else " and removes the realm and its content"
        click.echo(HINTS.format(mount=place, url=url, root=realm, state=state, dfs=dfs, fate=fate))
        try:
            signal.pause()
        except KeyboardInterrupt:
            click.echo("\nputting everything away …")


def _mountpoint(given: Path | None, scratch: Path) -> Path:
    place = (given or scratch / "dfs").absolute()
    place.mkdir(parents=True, exist_ok=True)
    return place


class _Runner:
    """Runs ``dfs`` commands with the demo's own state folder and user."""

    def __init__(self, state: Path, cache: Path) -> None:
        self.cache = cache
        self._password = state / "demo-password"
        self._environment = child_environment() | {"DFS_STATE": str(state)}

    def __call__(self, *words: str) -> str:
        # A session of its own: Ctrl-C is for the demo, which then ends them in order.
        done = subprocess.run(
            [python(), "-m", "dfs", *words],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            raise click.ClickException(f"`dfs {' '.join(words)}` failed with status {done.returncode}")
        return done.stdout

    def log_in(self, url: str) -> None:
        """As a user whose password is made once and kept beside the realm."""
        user = getpass.getuser()
        if not self._password.exists():
            with open(os.open(self._password, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(16))
            self("signup", user, "--realm", url, "--password-file", str(self._password))
        self("login", user, "--realm", url, "--password-file", str(self._password))
