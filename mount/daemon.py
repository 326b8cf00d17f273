"""The process behind a mount: it puts the parts together, serves, and takes them apart again."""

import hashlib
import logging
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cache.copies import CopyStore
from clients.auth import AuthClient
from clients.session import HttpWire
from mount.bindings import fusepy
from mount.control import ControlServer
from mount.options import MountOptions
from mount.owners import Owners
from mount.proxy import Proxy
from mount.recovery import recover
from mount.registry import MountRecord, register, state_folder, unregister
from mount.vfs import Vfs
from wire.messages.auth import Realm

log = logging.getLogger(__name__)

SOCKET_PATH_MAX = 100
"""sockaddr_un has room for 107 bytes (unix(7))."""


def run(options: MountOptions, realm: Realm, auth: AuthClient, on_ready: Callable[[], None]) -> None:
    """Mounts and serves until unmounted, or ended by a signal; then writes back what is dirty. ``auth`` is
    the user's login, of which the mount's session is a child. Raises OSError if anything stands in the way
    of mounting."""
    _allow_many_files()
    copies = CopyStore(options.cache_dir, options.cache_size)
    wire = HttpWire()
    try:
        keyring = auth.open_session(f"{socket.gethostname()}:{options.mountpoint}", options.trusted)
        proxy = Proxy(realm, keyring, wire, options.deadline)
        try:
            proxy.start()
            recover(proxy, copies)
            vfs = Vfs(proxy, copies, options.lock_wait)
            vfs.start()
            try:
                _serve(options, proxy, vfs, on_ready)
            finally:
                vfs.close()  # before the locks are given back, and the index is closed
        finally:
            proxy.close()
            _end_session(AuthClient(options.realm_url, keyring, wire))
    finally:
        copies.close()
        wire.close()


def _allow_many_files() -> None:
    """Each open inode takes a descriptor: the daemon must not run out of them before its callers do."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_session(auth: AuthClient) -> None:
    try:
        auth.logout()
    except OSError as error:
        log.info("the session is left to expire: %s", error)


def _serve(options: MountOptions, proxy: Proxy, vfs: Vfs, on_ready: Callable[[], None]) -> None:
    session = proxy.keyring.session
    if options.trusted:
        owners = Owners(0, 0, 0, 0)
    else:
        owners = Owners(session.uid, session.gids[0], os.getuid(), os.getgid())
    control_path = _control_path(options.mountpoint)
    control = ControlServer(control_path, proxy, vfs)
    record = MountRecord(
        mountpoint=str(options.mountpoint),
        binding="fusepy",
        pid=os.getpid(),
        realm=options.realm_url,
        user=session.user,
        cache_dir=str(options.cache_dir),
        control=str(control_path),
        started=time.time(),
    )

    def ready() -> None:
        register(record)
        on_ready()

    try:
        fusepy.serve(vfs, options, owners, ready)
    finally:
        control.close()
        unregister(record.mountpoint)


def _control_path(mountpoint: Path) -> Path:
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16] + ".sock"
    path = state_folder() / "control" / name
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        return Path(tempfile.mkdtemp(prefix="dfs-")) / name
    return path
