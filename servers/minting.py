"""Sessions with their tickets, as services make them that have the keys: for users, and for themselves."""

from collections.abc import Iterable, Mapping

from wire.messages.auth import Credential, Session
from wire.sealing import new_key
from wire.tickets import Role, Ticket, seal_ticket

NOBODY = 65534
"""The uid and gid of services: not a user's, and no more than any user's."""


def mint(
    keys: Mapping[Role, bytes],
    roles: Iterable[Role],
    number: int,
    user: str,
    client: str,
    *,
    now: float,
    life_seconds: float,
    uid: int = NOBODY,
    gids: list[int] | None = None,
    admin: bool = False,
    trusted: bool = False,
) -> Session:
    """The session ``number``, with a new key and ticket for each of ``roles`` that lives from ``now`` on."""
    gids = gids or [NOBODY]
    credentials = []
    for role in roles:
        key = new_key()
        ticket = Ticket(role, number, user, uid, gids, admin, trusted, client, key, now + life_seconds)
        credentials.append(Credential(role, key, seal_ticket(keys[role], ticket)))
    return Session(number, user, uid, gids, admin, trusted, life_seconds, credentials)
