"""``dfs mount`` and ``dfs umount``.

``mount`` starts the process that serves the mount and returns when the kernel has begun to ask it, or
says why not.
"""

import errno
import hashlib
import os
import re
import select
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dfs import background
from dfs.numbers import Number
from dfs.places import realm_option
from mount.control import Request, ask, ask_patiently
from mount.keeper import HANG_SECONDS, Given
from mount.options import MountOptions
from mount.registry import MountRecord, find, mountpoints, real_place, records, state_file, unregister
from wire.version import VERSION

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

TAKE_OVER_SECONDS = 60.0
"""How long a mount may take to go on with another version."""

END_SECONDS = 10.0
"""How long umount gives the process of the mount to end, however short it was told to wait."""

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"
"""fuse(4), mount.fuse3(8)."""

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def size(text: str) -> int:
    """A number of bytes with an optional unit: 500M, 2G. Raises BadParameter."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size like 500M or 2G")
    return int(match[1]) * UNITS[match[2].upper()]


def seconds_option(name: str, least: int, most: int, default: float, what: str) -> Callable[[F], F]:
    """A length of time."""
    kind = Number(least, most)
    return click.option(name, type=kind, default=default, show_default=True, metavar="SECONDS", help=what)


@click.command()
@click.argument("mountpoint", type=Path)  # not click.Path, which asks what is mounted there
@realm_option
@click.option("--user", default="", help="Whose login to use.  [default: who logged in last]")
@click.option("--password-file", type=click.Path(path_type=Path), help="To log in with, if need be.")
@click.option("--foreground", is_flag=True, help="Serve in this process and log to the terminal.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, help="Let other local users in; needs --trusted.")
@click.option("--trusted", is_flag=True, help="Act for every local user by his own uid; an admin grants it.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where local copies are kept.")
@click.option("--cache-size", type=size, default="10G", show_default=True, help="Limit of clean copies.")
@seconds_option("--lock-wait", 0, 86400, 30.0, "How long opening for writing waits for another writer.")
@seconds_option("--deadline", 1, 3600, 30.0, "How long a service may be silent before a call fails.")
@click.option(
    "--binding",
    type=click.Choice(["auto", "native", "fusepy"]),
    default="auto",
    show_default=True,
    help="How to speak FUSE: native (Linux; what auto takes there), or through libfuse.",
)
@click.option(
    "--consistency",
    type=click.Choice(["lease", "open"]),
    default="lease",
    show_default=True,
    help="lease: nothing old is ever shown, and what is cached costs no network. open: every open asks the "
    "directory; names and attributes may be a second old.",
)
@click.option(
    "--no-passthrough", is_flag=True, help="Never let the kernel read and write local copies itself."
)
@seconds_option(
    "--hang",
    1,
    3600,
    HANG_SECONDS,
    "How long the mount's worker may not answer before another one takes its place.",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--worker", default="", hidden=True)
def mount(
    mountpoint: Path,
    realm: str,
    user: str,
    password_file: Path | None,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    trusted: bool,
    cache_dir: Path | None,
    cache_size: int,
    lock_wait: float,
    deadline: float,
    binding: str,
    no_passthrough: bool,
    consistency: str,
    hang: float,
    ready_fd: int | None,
    worker: str,
) -> None:
    """Mount the realm on the directory MOUNTPOINT. A mount that another version of DFS has there is taken
    over, with the options that it has."""
    from clients.trust import normal_url
    from dfs import logins, mounted

    place, realm = real_place(mountpoint), normal_url(realm)
    whose = user or logins.usual_user(realm)
    if allow_other and not trusted:
        raise click.UsageError("--allow-other needs --trusted: other users act with their own rights")
    options = MountOptions(
        mountpoint=place,
        realm_url=realm,
        cache_dir=cache_dir.absolute() if cache_dir else _default_cache_dir(place, realm, whose),
        cache_bytes_max=cache_size,
        lock_wait_seconds=lock_wait,
        deadline_seconds=deadline,
        read_only=read_only,
        allow_other=allow_other,
        trusted=trusted,
        binding=binding,
        passthrough=not no_passthrough,
        consistency=consistency,
        hang_seconds=hang,
    )
    _check_cache_dir(options)
    if worker:
        mounted.work(options, whose, Given.parse(worker))
        return
    if ready_fd is None:
        if taken_over(place, realm, whose):
            click.echo(f"The mount on {place} is served by version {VERSION} now")
            return
        _check_place(options)
        if logins.trust().load(realm, whose) is None:
            logins.log_in(realm, whose, password_file, by_default=not user)
    if foreground:
        mounted.serve(options, whose, ready_fd)
    else:
        background.start(mounted.words(options, whose), state_file(place, ".log"), Path("/"))
        click.echo(f"The realm is mounted on {place}")


def taken_over(place: Path, realm: str, user: str) -> bool:
    """Has a mount that lives, of another version of DFS, go on with this one's code; False if there is none.
    Raises EBUSY for one of another realm or user, EIO if this version cannot take it over."""
    record = next((record for record in records() if record.mountpoint == str(place)), None)
    if record is None or not record.is_alive or record.version in ("", VERSION):
        return False
    if (record.realm, record.user) != (realm, user):
        raise OSError(errno.EBUSY, f"{record.user}'s mount of {record.realm} is there", str(place))
    from servers.supervision import child_environment, python

    program = [python(), "-m", "dfs"]
    environment = child_environment()
    try:
        ask(record.control, Request("replace", program=program, environment=environment))
    except BrokenPipeError:
        pass  # it was ended before it could answer
    last_moment = time.monotonic() + TAKE_OVER_SECONDS
    while (found := find(str(place))).worker_pid == record.worker_pid and time.monotonic() < last_moment:
        time.sleep(0.05)
    if found.version != VERSION:
        raise OSError(
            errno.EIO, f"version {VERSION} could not take the mount over; its log says why", str(place)
        )
    return True


def _check_cache_dir(options: MountOptions) -> None:
    if Path(os.path.realpath(options.cache_dir)).is_relative_to(options.mountpoint):
        text = "the cache folder is below the mountpoint, and would be out of reach"
        raise OSError(errno.EINVAL, text, str(options.cache_dir))


def _check_place(options: MountOptions) -> None:
    """Sees that it can be mounted, and by this user. Raises OSError."""
    _make_way(options.mountpoint)
    if os.geteuid() != 0:
        check_rights(options.mountpoint, options.allow_other)


def _make_way(place: Path) -> None:
    """Sees that something can be mounted there; a mount whose process has died is taken away first."""
    try:
        found = os.stat(place)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):  # the latter while the process dies
            raise OSError(error.errno, error.strerror, str(place)) from error
        _unmount(place, lazily=True)
        found = os.stat(place)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, "the mountpoint is not a directory", str(place))
    if str(place) in mountpoints():
        raise OSError(errno.EBUSY, "something is mounted there already", str(place))
    if os.listdir(place):
        raise OSError(errno.EEXIST, "the mountpoint is not empty", str(place))


def check_rights(place: Path, allow_other: bool) -> None:
    """What fusermount3 will ask of an ordinary user, told in words of ours. Raises OSError."""
    if shutil.which("fusermount3") is None:
        raise OSError(errno.ENOENT, "it is not installed (on Debian: apt-get install fuse3)", "fusermount3")
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK, effective_ids=True):
        raise OSError(errno.EACCES, "only root may use it here; an admin can allow it to you", FUSE_DEVICE)
    if not os.access(place, os.W_OK, effective_ids=True):
        raise OSError(errno.EACCES, "you may mount only on a directory that you may write to", str(place))
    if allow_other and not _others_are_allowed():
        raise OSError(errno.EPERM, "--allow-other needs the line user_allow_other there", FUSE_CONF)


def _others_are_allowed() -> bool:
    try:
        lines = Path(FUSE_CONF).read_text().splitlines()
    except OSError:
        return False
    return "user_allow_other" in map(str.strip, lines)


def _default_cache_dir(place: Path, realm: str, user: str) -> Path:
    """A folder for each realm, user and mountpoint, however they were spelt: a cache belongs to one mount at
    a time, and what it has not committed to one user."""
    home = os.environ.get("XDG_CACHE_HOME")
    what = hashlib.sha256(os.fsencode(f"{realm}\n{user}\n{place}")).hexdigest()[:16]
    return (Path(home) if home else Path.home() / ".cache") / "dfs" / what


@click.command()
@click.argument("mountpoint", type=Path)  # not click.Path, which asks what is mounted there
@seconds_option("--wait", 0, 86400, 60.0, "How long to wait for what is not committed yet.")
def umount(mountpoint: Path, wait: float) -> None:
    """Unmount MOUNTPOINT, after everything written there is committed."""
    place = real_place(mountpoint)
    record = find(str(place))
    if not record.is_alive:
        if str(place) in mountpoints():
            _unmount(place, lazily=True)
        unregister(str(place))
        click.echo(f"The mount on {place} was dead; it is taken away.")
        return
    unsaved = _write_back(record, wait)
    process = os.pidfd_open(record.pid)
    try:
        _unmount(place, lazily=False)
        ended = select.select([process], [], [], max(wait, END_SECONDS))[0]
    finally:
        os.close(process)
    if unsaved:
        raise OSError(
            errno.EIO,
            f"{unsaved} files are not committed; the next mount with this cache will do it",
            str(place),
        )
    if not ended:
        raise OSError(errno.ETIMEDOUT, f"the process {record.pid} of the mount does not end", str(place))
    click.echo(f"{place} is unmounted; everything is committed.")


def _write_back(record: MountRecord, wait_seconds: float) -> int:
    """Has the mount commit what is dirty, with a progress bar; returns how many files are left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    last_moment = time.monotonic() + wait_seconds
    left = total = ask_patiently(record.control, Request("status")).unsaved
    with Progress(
        TextColumn("committing"), BarColumn(), MofNCompleteColumn(), console=_stderr(), transient=True
    ) as bar:
        task = bar.add_task("", total=total)
        while left and time.monotonic() < last_moment:
            left = ask_patiently(record.control, Request("write-back"), wait_seconds + 60).unsaved
            bar.update(task, total=max(total, left), completed=max(0, total - left))
            if left:
                time.sleep(0.2)
    return left


def _unmount(place: Path, *, lazily: bool) -> None:
    """umount(2) for root, fusermount3 for others."""
    tool = ["umount"] if os.getuid() == 0 else [shutil.which("fusermount3") or "fusermount", "-u"]
    if lazily:
        tool.append("-l" if os.getuid() == 0 else "-z")
    done = subprocess.run([*tool, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason was given"
        number = errno.EBUSY if "busy" in reason else errno.EPERM
        raise OSError(number, f"cannot unmount: {reason}", str(place))


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)
