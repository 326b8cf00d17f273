"""Messages of the authentication server.

``POST /v1/signup`` and ``POST /v1/login`` carry ``Credentials`` sealed to the server's public key
(HPKE; the context is the path). The reply to a login can only be opened with the password: it says
how to derive the key (Argon2id), and the token is a ``Session`` sealed under it.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from wire.limits import CLIENT_BYTES_MAX, PASSWORD_BYTES_MAX, USER_BYTES_MAX
from wire.messages.common import Id32, Positive
from wire.tickets import Role

Client = Annotated[str, Meta(max_length=CLIENT_BYTES_MAX)]
Password = Annotated[str, Meta(min_length=1, max_length=PASSWORD_BYTES_MAX)]
UserName = Annotated[str, Meta(min_length=1, max_length=USER_BYTES_MAX)]


class Realm(msgspec.Struct, frozen=True):
    """``GET /v1/realm``, as JSON, not sealed. The public key is what the fingerprint is of."""

    realm: str
    public_key: bytes
    directory_url: str
    lock_url: str


class Credentials(msgspec.Struct, frozen=True):
    """What a user proves himself with. ``nonce`` ties the reply to this request."""

    user: UserName
    password: Password
    client: Client
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]


class SealedCredentials(msgspec.Struct, frozen=True):
    """The body of sign-up and login: HPKE, see wire.sealing."""

    sealed: Annotated[bytes, Meta(max_length=8192)]


Iterations = Annotated[int, Meta(ge=1, le=16)]
MemoryKib = Annotated[int, Meta(ge=8192, le=1024 * 1024)]


class KeyDerivation(msgspec.Struct, frozen=True):
    """Argon2id (RFC 9106) with 64 bytes of output: the first half proves the password to the server,
    the second half is the key of the token and is never stored. The bounds keep a false server from
    exhausting its clients."""

    salt: Annotated[bytes, Meta(min_length=16, max_length=64)]
    iterations: Iterations
    lanes: Annotated[int, Meta(ge=1, le=16)]
    memory_kib: MemoryKib


class Credential(msgspec.Struct, frozen=True):
    """The right to speak to one role: the key that seals, and the ticket that says so to the service."""

    role: Role
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    ticket: bytes


class Session(msgspec.Struct, frozen=True):
    """A session as its owner knows it. ``lifetime_seconds`` is how long the tickets lived when they were
    made."""

    session: Positive
    user: str
    uid: int
    gids: list[int]
    admin: bool
    trusted: bool
    lifetime_seconds: float
    credentials: list[Credential]


class LoggedIn(msgspec.Struct, frozen=True):
    """``token`` is a Session sealed under the second half of the derived key; the context is
    ``dfs1 token`` followed by the nonce of the credentials."""

    derivation: KeyDerivation
    token: bytes


class OpenSession(msgspec.Struct, frozen=True):
    """``POST /v1/sessions`` (sealed, auth role): a session of its own for a program or a mount, as a
    child of the one that asks. ``trusted`` is refused with EPERM unless an admin granted it."""

    client: Client
    trusted: bool = False


class ChangePassword(msgspec.Struct, frozen=True):
    """``PUT /v1/password`` (sealed, auth role). Every other session of the user ends."""

    old: Password
    new: Password


class UserInfo(msgspec.Struct, frozen=True):
    """A user as an admin sees him."""

    user: str
    uid: Id32
    gids: list[Id32]
    admin: bool
    trusted: bool


class Users(msgspec.Struct, frozen=True):
    """``GET /v1/users`` (sealed, auth role, admins only)."""

    users: list[UserInfo]


class ChangeUser(msgspec.Struct, frozen=True):
    """``PUT /v1/users/{uid}`` (sealed, auth role, admins only). What is None stays as it is."""

    gids: Annotated[list[Id32], Meta(min_length=1, max_length=64)] | None = None
    admin: bool | None = None
    trusted: bool | None = None
