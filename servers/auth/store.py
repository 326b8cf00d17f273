"""The authentication server's tables, and the statements on them. No rules.

Numbers. ``meta`` has the next uid and the next session; neither is ever given out twice. Sessions start
at a random number, so that a realm whose database was lost does not meet its old sessions' requests in
the other services.

Users. ``verifier`` is the SHA-256 of the first half of what Argon2id makes of the password; the second
half is nowhere. ``gids`` is never empty, the primary group comes first. Users are never deleted.

Sessions. One is alive while ``ended`` is NULL and it was renewed lately. A row outlives its session until
the idle time is over, because its ``nonce`` (of the login that opened it) tells a repeated login.

Guesses. A row counts the wrong passwords in a row for a name, whether there is such a user or not.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    update,
)

from wire.messages.auth import ChangeUser, KeyDerivation

FIRST_UID = 10001

_metadata = MetaData()

_meta = Table("meta", _metadata, Column("key", String, primary_key=True), Column("value", BigInteger))

_users = Table(
    "users",
    _metadata,
    Column("uid", BigInteger, primary_key=True, autoincrement=False),
    Column("user", String, nullable=False, unique=True),
    Column("gids", JSON, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("trusted", Boolean, nullable=False),
    Column("verifier", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("iterations", Integer, nullable=False),
    Column("lanes", Integer, nullable=False),
    Column("memory_kib", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("signup_nonce", LargeBinary, nullable=False),
)

_sessions = Table(
    "sessions",
    _metadata,
    Column("session", BigInteger, primary_key=True, autoincrement=False),
    Column("uid", BigInteger, nullable=False, index=True),
    Column("client", String, nullable=False),
    Column("trusted", Boolean, nullable=False),  # as it was asked for; the user's flag counts too
    Column("parent", BigInteger, nullable=True, index=True),
    Column("created", Float, nullable=False),
    Column("renewed", Float, nullable=False, index=True),
    Column("ended", Float, nullable=True),
    Column("nonce", LargeBinary, nullable=True),
    UniqueConstraint("uid", "nonce"),
)

_guesses = Table(
    "guesses",
    _metadata,
    Column("user", String, primary_key=True),
    Column("wrong", Integer, nullable=False),
    Column("at", Float, nullable=False, index=True),
)


@dataclass(frozen=True)
class User:
    """A row of ``users``. ``created`` in seconds since the epoch."""

    uid: int
    name: str
    gids: list[int]
    admin: bool
    trusted: bool
    verifier: bytes
    derivation: KeyDerivation
    created: float
    signup_nonce: bytes


@dataclass(frozen=True)
class StoredSession:
    """A row of ``sessions`` with its user."""

    number: int
    user: User
    client: str
    trusted: bool
    renewed: float
    ended: float | None


def tables() -> MetaData:
    """The tables, to be made in a database; others can be added to this copy."""
    copy = MetaData()
    for table in _metadata.tables.values():
        table.to_metadata(copy)
    return copy


def set_up(connection: Connection) -> None:
    """The first numbers, if the database is new."""
    for key, value in (("next_uid", FIRST_UID), ("next_session", 2**32 + secrets.randbelow(2**52))):
        if connection.execute(select(_meta.c.value).where(_meta.c.key == key)).first() is None:
            connection.execute(insert(_meta), {"key": key, "value": value})


def _next(connection: Connection, key: str) -> int:
    statement = update(_meta).where(_meta.c.key == key).values(value=_meta.c.value + 1)
    return int(connection.execute(statement.returning(_meta.c.value)).scalar_one()) - 1


# Users


def add_user(
    connection: Connection,
    name: str,
    *,
    admin: bool,
    verifier: bytes,
    derivation: KeyDerivation,
    now: float,
    signup_nonce: bytes,
) -> int:
    """The uid of a new user."""
    uid = _next(connection, "next_uid")
    row = {
        "uid": uid,
        "user": name,
        "gids": [uid],
        "admin": admin,
        "trusted": False,
        "created": now,
        "signup_nonce": signup_nonce,
    }
    connection.execute(insert(_users), row | _password_columns(verifier, derivation))
    return uid


def user_named(connection: Connection, name: str) -> User | None:
    """The user, or None."""
    row = connection.execute(select(_users).where(_users.c.user == name)).first()
    return None if row is None else _user(row)


def user_of(connection: Connection, uid: int) -> User | None:
    """The user, or None."""
    row = connection.execute(select(_users).where(_users.c.uid == uid)).first()
    return None if row is None else _user(row)


def all_users(connection: Connection) -> list[User]:
    """All users, by uid."""
    return [_user(row) for row in connection.execute(select(_users).order_by(_users.c.uid))]


def has_users(connection: Connection) -> bool:
    """Whether anybody has signed up yet."""
    return connection.execute(select(_users.c.uid).limit(1)).first() is not None


def count_admins(connection: Connection) -> int:
    """How many users are admins."""
    return connection.execute(select(func.count()).where(_users.c.admin)).scalar_one()


def change_user(connection: Connection, uid: int, change: ChangeUser) -> None:
    """Sets what is not None."""
    wanted = {"gids": change.gids, "admin": change.admin, "trusted": change.trusted}
    values = {column: value for column, value in wanted.items() if value is not None}
    if values:
        connection.execute(update(_users).where(_users.c.uid == uid).values(values))


def set_password(connection: Connection, uid: int, verifier: bytes, derivation: KeyDerivation) -> None:
    """Replaces the verifier and how it is derived."""
    columns = _password_columns(verifier, derivation)
    connection.execute(update(_users).where(_users.c.uid == uid).values(columns))


def _password_columns(verifier: bytes, derivation: KeyDerivation) -> dict[str, object]:
    return {
        "verifier": verifier,
        "salt": derivation.salt,
        "iterations": derivation.iterations,
        "lanes": derivation.lanes,
        "memory_kib": derivation.memory_kib,
    }


def _user(row: Row[tuple[object, ...]]) -> User:
    derivation = KeyDerivation(bytes(row.salt), row.iterations, row.lanes, row.memory_kib)
    return User(
        uid=row.uid,
        name=row.user,
        gids=row.gids,
        admin=row.admin,
        trusted=row.trusted,
        verifier=bytes(row.verifier),
        derivation=derivation,
        created=row.created,
        signup_nonce=bytes(row.signup_nonce),
    )


# Sessions


def add_session(
    connection: Connection,
    uid: int,
    client: str,
    now: float,
    *,
    trusted: bool = False,
    parent: int | None = None,
    nonce: bytes | None = None,
) -> int:
    """The number of a new session."""
    number = _next(connection, "next_session")
    row = {
        "session": number,
        "uid": uid,
        "client": client,
        "trusted": trusted,
        "parent": parent,
        "created": now,
        "renewed": now,
        "nonce": nonce,
    }
    connection.execute(insert(_sessions), row)
    return number


def session(connection: Connection, number: int) -> StoredSession | None:
    """The session, alive or not, or None."""
    row = connection.execute(select(_sessions).where(_sessions.c.session == number)).first()
    user = None if row is None else user_of(connection, row.uid)
    if row is None or user is None:
        return None
    return StoredSession(number, user, row.client, row.trusted, row.renewed, row.ended)


def session_of_login(connection: Connection, uid: int, nonce: bytes) -> int | None:
    """The session that the login with this nonce opened, alive or not."""
    same = (_sessions.c.uid == uid) & (_sessions.c.nonce == nonce)
    return connection.execute(select(_sessions.c.session).where(same)).scalar_one_or_none()


def renew_session(connection: Connection, number: int, now: float) -> None:
    """Notes that the session is in use."""
    connection.execute(update(_sessions).where(_sessions.c.session == number).values(renewed=now))


def end_session(connection: Connection, number: int, now: float) -> None:
    """Ends a session and all that were opened from it."""
    numbers = [number]
    while numbers:
        these = _sessions.c.session.in_(numbers) & _sessions.c.ended.is_(None)
        connection.execute(update(_sessions).where(these).values(ended=now))
        children = _sessions.c.parent.in_(numbers) & _sessions.c.ended.is_(None)
        numbers = list(connection.execute(select(_sessions.c.session).where(children)).scalars())


def end_other_sessions(connection: Connection, uid: int, number: int, now: float) -> None:
    """Ends all sessions of a user but this one."""
    others = (_sessions.c.uid == uid) & (_sessions.c.session != number) & _sessions.c.ended.is_(None)
    connection.execute(update(_sessions).where(others).values(ended=now))


def forget_sessions(connection: Connection, renewed_before: float) -> None:
    """Drops the sessions that were not renewed since."""
    connection.execute(delete(_sessions).where(_sessions.c.renewed < renewed_before))


# Guesses


def wrong_guesses(connection: Connection, name: str) -> tuple[int, float]:
    """How many in a row, and when the last one was (seconds since the epoch)."""
    row = connection.execute(select(_guesses).where(_guesses.c.user == name)).first()
    return (0, 0.0) if row is None else (row.wrong, row.at)


def set_wrong_guesses(connection: Connection, name: str, wrong: int, at: float) -> None:
    """Replaces the count; 0 forgets the name."""
    connection.execute(delete(_guesses).where(_guesses.c.user == name))
    if wrong:
        connection.execute(insert(_guesses), {"user": name, "wrong": wrong, "at": at})


def forget_guesses(connection: Connection, before: float) -> None:
    """Drops the names at which nobody has guessed since."""
    connection.execute(delete(_guesses).where(_guesses.c.at < before))
