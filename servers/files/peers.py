"""How a file server speaks to the others of its realm: with tickets that it makes for itself.

It has the ticket keys of the file servers and of the services (servers.keys), so nobody else need be
asked. The tickets are short-lived, and replaced at two thirds of their life: what somebody overheard and
sends again is refused soon, also by a directory that has forgotten what it was told.
"""

import secrets
from collections.abc import Callable

from clients.session import Keyring
from servers.keys import ServiceKeys
from servers.minting import mint
from wire.messages.auth import Credential, Session
from wire.tickets import Role

USER = "file-server"
"""Not a user: no ticket that it makes opens a session at the directory's or lock server's user side."""

LIFE_SECONDS = 300.0
"""Also how far the clocks of two machines may differ."""


def own_keyring(keys: ServiceKeys, name: str, clock: Callable[[], float]) -> "OwnKeyring":
    """The keyring of the file server ``name``."""
    number = secrets.randbits(62) | 1  # names its requests in everybody's logs
    return OwnKeyring(_mint(keys, name, number, clock()), lambda _: _mint(keys, name, number, clock()))


class OwnKeyring(Keyring):
    """Renews itself before others see an expired ticket."""

    def credential(self, role: Role) -> Credential:
        """As Keyring's."""
        if self.seconds_until_renewal() < 0:
            self.renew()
        return super().credential(role)


def _mint(keys: ServiceKeys, name: str, number: int, now: float) -> Session:
    roles = (Role.FILES, Role.JOIN)
    return mint(keys.tickets, roles, number, USER, name, now=now, life_seconds=LIFE_SECONDS)
