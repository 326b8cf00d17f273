"""The process behind a mount: it puts the parts together, serves, and takes them apart again."""

import logging
import os
import time
from collections.abc import Callable

import msgspec

from cache.copies import CopyStore
from mount import bindings
from mount.control_server import ControlServer
from mount.options import MountOptions
from mount.owners import Owners
from mount.proxy import Proxy
from mount.recovery import Recovery
from mount.registry import MountRecord, records, register, state_file, unregister
from mount.vfs import Vfs
from mount.worker import Worker
from wire.version import VERSION

log = logging.getLogger(__name__)


def run(
    options: MountOptions,
    proxy: Proxy,
    copies: CopyStore,
    on_ready: Callable[[], None],
    worker: Worker | None = None,
) -> None:
    """Mounts and serves until unmounted, or ended by a signal; then writes back what is dirty. ``proxy`` is
    of a session of the mount's own; ``worker`` is this process for its keeper, if it has one. Raises OSError
    if it cannot be mounted."""
    recovery = Recovery(proxy, copies)
    if proxy.slate.init_answer is None:  # else programs wait: in the background, and before a file is opened
        recovery.run()
    vfs = Vfs(proxy, copies, options.lock_wait_seconds, recovery.settle)
    vfs.start()
    recovery.start()
    try:
        _serve(options, proxy, vfs, recovery, on_ready, worker)
    finally:
        recovery.close()
        vfs.close()


def _serve(
    options: MountOptions,
    proxy: Proxy,
    vfs: Vfs,
    recovery: Recovery,
    on_ready: Callable[[], None],
    worker: Worker | None,
) -> None:
    binding = bindings.choose(options.binding)
    serve = bindings.load(binding)
    control_path = state_file(options.mountpoint, ".sock")
    control = ControlServer(control_path, proxy, vfs, recovery, worker)
    record = MountRecord(
        mountpoint=str(options.mountpoint),
        binding=binding,
        pid=os.getpid() if worker is None else os.getppid(),
        realm=options.realm_url,
        user=proxy.keyring.session.user,
        cache_dir=str(options.cache_dir),
        control=str(control_path),
        started=_started(proxy, options),
        worker_pid=os.getpid(),
        version=VERSION,
    )
    if worker is not None:
        worker.is_able = vfs.is_able

    def ready(passthrough: bool) -> None:
        register(msgspec.structs.replace(record, passthrough=passthrough))
        on_ready()

    try:
        serve(vfs, options, _owners(options, proxy), ready)
    finally:
        control.close()
        unregister(record.mountpoint)


def _owners(options: MountOptions, proxy: Proxy) -> Owners:
    """The session's user is shown as the one who mounted; a trusted mount shows everybody as he is."""
    if options.trusted:
        return Owners(0, 0, 0, 0)
    session = proxy.keyring.session
    return Owners(session.uid, session.gids[0], os.getuid(), os.getgid())


def _started(proxy: Proxy, options: MountOptions) -> float:
    """When the mount began to be: a worker that follows another one finds that in the mount's record."""
    if proxy.slate.init_answer is not None:
        for record in records():
            if record.mountpoint == str(options.mountpoint):
                return record.started
    return time.time()
