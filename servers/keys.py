"""The keys of a realm, and which service gets which.

=========  ===========  ==========================================  =================
service    private key  ticket keys                                 grant key
=========  ===========  ==========================================  =================
auth       X25519       auth, directory, lock, files (it makes       no
                        every client's tickets)
directory  no           directory, join                             opens grants
lock       no           lock                                        makes grants
files      no           files, join (also makes receipts)           no
=========  ===========  ==========================================  =================

So a stolen file server opens no directory session. Each service reads one file of its own.
"""

import errno
import os
from pathlib import Path

import msgspec

from servers.durable import replace
from wire.errors import fail
from wire.sealing import new_key, new_private_key
from wire.tickets import CLIENT_ROLES, Role


class ServiceKeys(msgspec.Struct, frozen=True):
    """What one service knows. ``realm`` is the installation's name for itself."""

    realm: str
    tickets: dict[Role, bytes]
    private_key: bytes = b""
    grant: bytes = b""


def new_realm_keys() -> dict[str, ServiceKeys]:
    """Fresh keys for the four services."""
    realm = os.urandom(8).hex()
    ticket = {role: new_key() for role in Role}
    grant = new_key()

    def some(*roles: Role) -> dict[Role, bytes]:
        return {role: ticket[role] for role in roles}

    return {
        "auth": ServiceKeys(realm, some(*CLIENT_ROLES), private_key=new_private_key()),
        "directory": ServiceKeys(realm, some(Role.DIRECTORY, Role.JOIN), grant=grant),
        "lock": ServiceKeys(realm, some(Role.LOCK), grant=grant),
        "files": ServiceKeys(realm, some(Role.FILES, Role.JOIN)),
    }


def write_keys(path: Path, keys: ServiceKeys) -> None:
    """Durably writes a key file that only its owner can read (0600 in a 0700 folder)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace(path, msgspec.json.encode(keys))


def read_keys(path: Path) -> ServiceKeys:
    """The keys in a file. Raises OSError with a sentence for the admin."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServiceKeys)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise fail(errno.EINVAL, f"{path} is not a key file: {error}") from error
