"""Sealed words that one service gives and another believes.

==========  ==================  ======================  =====================================
word        given by            believed by             says
==========  ==================  ======================  =====================================
ticket      auth                the service of its role who this session is, and its key here
grant       lock                directory               this session has the inode's write lock
receipt     file server         directory               these servers have this chunk on disk
==========  ==================  ======================  =====================================

The bearer cannot read or change them: each is sealed under a key that only the giver and the
believer have.
"""

from enum import StrEnum
from typing import TypeVar

import msgspec

from wire import codec
from wire.errors import BadMessage, BadSeal, TicketRefused
from wire.sealing import seal, unseal

T = TypeVar("T", bound=msgspec.Struct)


class Role(StrEnum):
    """What a ticket opens. ``JOIN`` is for services that work for the realm, not for users."""

    AUTH = "auth"
    DIRECTORY = "directory"
    LOCK = "lock"
    FILES = "files"
    JOIN = "join"


CLIENT_ROLES = (Role.AUTH, Role.DIRECTORY, Role.LOCK, Role.FILES)


class Ticket(msgspec.Struct, frozen=True):
    """Who a session is, for one role. ``expires`` is in seconds since the epoch, by the realm's clocks."""

    role: Role
    session: int
    user: str
    uid: int
    gids: list[int]
    """Primary group first."""
    admin: bool
    trusted: bool
    """May speak for other uids (a multi-user mount)."""
    client: str
    """Where the session runs, for people: ``host:mountpoint`` or what the client said."""
    key: bytes
    expires: float


class Grant(msgspec.Struct, frozen=True):
    """The lock server's word: ``session`` holds the write lock of ``ino`` under ``token``."""

    ino: int
    token: int
    session: int


class Receipt(msgspec.Struct, frozen=True):
    """A file server's word: ``servers`` (primary first) have ``chunk`` on disk."""

    chunk: bytes
    size: int
    servers: list[int]
    issued: float
    """Seconds since the epoch; the directory believes it for a limited time."""


def seal_ticket(key: bytes, ticket: Ticket) -> bytes:
    """``ticket`` under its role's key."""
    return seal(key, codec.encode(ticket), b"dfs1 ticket")


def open_ticket(key: bytes, sealed: bytes, role: Role) -> Ticket:
    """The ticket inside, expired or not. Raises TicketRefused if it is none of ours or of another role."""
    ticket = _open(key, sealed, b"dfs1 ticket", Ticket)
    if ticket.role != role:
        raise TicketRefused(f"the ticket is for the role {ticket.role}")
    return ticket


def seal_grant(key: bytes, grant: Grant) -> bytes:
    """``grant`` under the key that the lock and directory servers share."""
    return seal(key, codec.encode(grant), b"dfs1 grant")


def open_grant(key: bytes, sealed: bytes) -> Grant:
    """The grant inside. Raises TicketRefused."""
    return _open(key, sealed, b"dfs1 grant", Grant)


def seal_receipt(key: bytes, receipt: Receipt) -> bytes:
    """``receipt`` under the join key."""
    return seal(key, codec.encode(receipt), b"dfs1 receipt")


def open_receipt(key: bytes, sealed: bytes) -> Receipt:
    """The receipt inside. Raises TicketRefused."""
    return _open(key, sealed, b"dfs1 receipt", Receipt)


def _open(key: bytes, sealed: bytes, context: bytes, kind: type[T]) -> T:
    try:
        return codec.decode(unseal(key, sealed, context), kind)
    except (BadSeal, BadMessage) as error:
        raise TicketRefused(f"not a {kind.__name__.lower()} of this realm") from error
