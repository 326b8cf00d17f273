"""The processes behind a mount: a keeper and its worker (mount.keeper), or, with fusepy, one that is all."""

import faulthandler
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import click

from dfs import background
from mount import bindings
from mount.keeper import Given, Keeper, end_with_keeper
from mount.options import MountOptions
from mount.slate import Slate, new_memory
from mount.worker import Worker
from servers.supervision import child_environment, python

log = logging.getLogger(__name__)

DIED = 70
"""The status of a worker that could not go on; its keeper starts another one."""


def serve(options: MountOptions, user: str, ready_fd: int | None) -> None:
    """The mount's own process, until it is unmounted. ``ready_fd`` is told (dfs.background); without it, the
    terminal. Raises OSError if it cannot be mounted."""
    _prepare()
    run = _keep if bindings.choose(options.binding) == bindings.NATIVE else _be_all
    if ready_fd is None:
        run(options, user, lambda: click.echo("mounted", err=True))
    else:
        with background.telling(ready_fd) as tell:
            run(options, user, lambda: tell(background.Word()))


def work(options: MountOptions, user: str, given: Given) -> None:
    """A worker's process. It tells its keeper what keeps it from being ready."""
    end_with_keeper(given)
    worker = Worker(given)
    _prepare()
    try:
        slate = Slate(given.memory)
        _run(replace(options, device=given.device), user, worker.ready, slate, worker)
    except OSError as error:
        worker.failed(error)
        raise


def words(options: MountOptions, user: str) -> list[str]:
    """The arguments of ``dfs`` for ``serve`` and ``work``."""
    flags = {
        "--read-only": options.read_only,
        "--allow-other": options.allow_other,
        "--trusted": options.trusted,
        "--no-passthrough": not options.passthrough,
    }
    return [
        "mount",
        str(options.mountpoint),
        "--foreground",
        *("--realm", options.realm_url),
        *("--user", user),
        *("--cache-dir", str(options.cache_dir)),
        *("--cache-size", str(options.cache_bytes_max)),
        *("--lock-wait", str(options.lock_wait_seconds)),
        *("--deadline", str(options.deadline_seconds)),
        *("--binding", options.binding),
        *("--consistency", options.consistency),
        *("--hang", str(options.hang_seconds)),
        *(flag for flag, given in flags.items() if given),
    ]


def _prepare() -> None:
    from servers.logs import set_up_logging

    # Each open inode takes a descriptor: the worker must not run out of them before its callers do.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    set_up_logging("info")


def _keep(options: MountOptions, user: str, on_ready: Callable[[], None]) -> None:
    from mount.bindings.native.device import Device

    device = Device(options)
    memory = new_memory()
    keeper = Keeper(
        device.descriptor,
        memory,
        [python(), "-m", "dfs"],
        words(options, user),
        child_environment(),
        options.hang_seconds,
    )
    try:
        keeper.run(on_ready)
    finally:
        device.unmount()
        device.close()
        os.close(memory)


def _be_all(options: MountOptions, user: str, on_ready: Callable[[], None]) -> None:
    _run(options, user, on_ready, Slate(), None)


def _run(
    options: MountOptions, user: str, on_ready: Callable[[], None], slate: Slate, worker: Worker | None
) -> None:
    from cache.copies import CopyStore
    from dfs import logins
    from dfs.memory import keep_freed_memory
    from mount.daemon import run

    keep_freed_memory()
    with (
        closing(CopyStore(options.cache_dir, options.cache_bytes_max)) as copies,
        logins.client(
            options.realm_url,
            f"{socket.gethostname()}:{options.mountpoint}",
            user,
            trusted=options.trusted,
            deadline_seconds=options.deadline_seconds,
            slate=slate,
            promised=options.consistency == "lease",
        ) as proxy,
    ):
        try:
            run(options, proxy, copies, on_ready, worker)
        except BaseException:
            if worker is None or slate.init_answer is None:
                raise
            # Nothing is put away: session, locks and handles are the next worker's.
            log.exception("this process cannot serve the mount")
            os._exit(DIED)
