"""Who is who: sign-up, login, sessions and the tickets that every service believes.

What is decided here is decided on the database as it is in that transaction, never on what the ticket
says: an admin who was one when his ticket was made, or a session that has ended, gets nothing new.
Tickets that are out already are believed by the other services until they expire.
"""

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from servers.auth import store
from servers.auth.config import AuthConfig
from servers.auth.passwords import (
    GUESSES_KEPT_SECONDS,
    Passwords,
    check,
    check_new,
    count_guess,
    uncount_guess,
    verifier_of,
)
from servers.auth.store import StoredSession, User
from servers.database import Database
from servers.minting import mint
from servers.replies import Replies, settle
from wire import codec
from wire.errors import SlowDown, TicketRefused, WrongCredentials, fail
from wire.messages.auth import (
    ChangePassword,
    ChangeUser,
    Credentials,
    LoggedIn,
    OpenSession,
    Realm,
    Session,
    UserInfo,
    Users,
)
from wire.messages.common import Empty
from wire.names import check_user_name
from wire.passwords import token_context
from wire.sealing import public_key_of, seal
from wire.tickets import CLIENT_ROLES, Ticket

log = logging.getLogger(__name__)

SIGNUP_REPEAT_SECONDS = 600.0
"""So long a sign-up may be sent again because its reply was lost."""


@dataclass(frozen=True)
class _Guess:
    """``user`` is None if the name or the password is wrong."""

    user: User | None
    token_key: bytes


class AuthService:
    """The rules. ``replies`` remembers the changes of users and passwords."""

    def __init__(self, config: AuthConfig, database: Database, replies: Replies) -> None:
        self._config = config
        self._clock = config.clock
        self._database = database
        self._replies = replies
        self._passwords = Passwords(config.kdf_memory_kib, config.kdf_iterations)
        database.write(store.set_up)

    def realm(self) -> Realm:
        """What everybody may know."""
        keys = self._config.keys
        return Realm(
            keys.realm, public_key_of(keys.private_key), self._config.directory_url, self._config.lock_url
        )

    # Sign-up and login

    def sign_up(self, credentials: Credentials) -> Empty:
        """Makes a user; the first one is the realm's admin. Raises EEXIST, or EINVAL for a bad name or
        password. The same credentials sent again are answered as they were the first time."""
        check_user_name(credentials.user)
        check_new(credentials.password)
        with self._database.read() as connection:
            if self._is_signed_up(connection, credentials):
                return Empty()
        with self._passwords.slot():
            derivation = self._passwords.new_derivation()
            verifier = verifier_of(credentials.password, derivation)

        def add(connection: Connection) -> None:
            # The single writer makes this atomic: of two first users one is the first.
            if self._is_signed_up(connection, credentials):
                return
            uid = store.add_user(
                connection,
                credentials.user,
                admin=not store.has_users(connection),
                verifier=verifier,
                derivation=derivation,
                now=self._clock(),
                signup_nonce=credentials.nonce,
            )
            log.info("%s signed up: uid %d", credentials.user, uid)

        self._database.write(add)
        return Empty()

    def _is_signed_up(self, connection: Connection, credentials: Credentials) -> bool:
        """Whether this very sign-up was done. Raises EEXIST if another one took the name."""
        user = store.user_named(connection, credentials.user)
        if user is None:
            return False
        is_late = self._clock() - user.created > SIGNUP_REPEAT_SECONDS
        if user.signup_nonce != credentials.nonce or is_late:
            raise fail(errno.EEXIST, f"the user name {credentials.user} is taken")
        return True

    def log_in(self, credentials: Credentials) -> LoggedIn:
        """A new session, sealed under the password. Raises WrongCredentials or SlowDown."""
        check_user_name(credentials.user)
        with self._passwords.slot():
            guess = self._guess(credentials.user, credentials.password)
            session = self._database.write(
                lambda connection: self._log_in(connection, guess.user, credentials)
            )
        log.info("%s logged in: session %x, %r", session.user.name, session.number, session.client)
        token = codec.encode(self._mint(session))
        return LoggedIn(
            session.user.derivation, seal(guess.token_key, token, token_context(credentials.nonce))
        )

    def _log_in(self, connection: Connection, user: User | None, credentials: Credentials) -> StoredSession:
        user = self._with_same_password(connection, user)
        repeated = store.session_of_login(connection, user.uid, credentials.nonce)
        if repeated is not None:
            uncount_guess(connection, user.name)
            return self._alive(connection, repeated)
        now = self._clock()
        store.set_wrong_guesses(connection, user.name, 0, now)
        self._forget_old(connection, now)
        number = store.add_session(connection, user.uid, credentials.client, now, nonce=credentials.nonce)
        return self._alive(connection, number)

    def _forget_old(self, connection: Connection, now: float) -> None:
        store.forget_sessions(connection, now - self._config.session_idle_seconds)
        store.forget_guesses(connection, now - GUESSES_KEPT_SECONDS)
        self._replies.forget_old(connection)

    def _guess(self, name: str, password: str) -> _Guess:
        """Checks a password. An unknown name takes the same steps as a wrong password.

        The caller has a slot, and keeps it until the count of a right guess is taken back: so right ones
        that come all at once do not slow each other down.
        """

        def count(connection: Connection) -> User | None:
            count_guess(connection, name, self._clock())
            return store.user_named(connection, name)

        try:
            user = self._database.write(count)
        except SlowDown as error:
            log.warning("login of %s refused: %s", name, error.detail)
            raise
        derivation = user.derivation if user else self._passwords.new_derivation()
        verifier = user.verifier if user else os.urandom(32)
        is_right, token_key = check(password, derivation, verifier)
        if not is_right:
            log.warning("wrong user name or password for %s", name)
        return _Guess(user if is_right else None, token_key)

    def _with_same_password(self, connection: Connection, user: User | None) -> User:
        """The user as he is now. Raises WrongCredentials if the password was wrong, or is by now: a
        password change ends all sessions, and none may slip in after it."""
        current = store.user_of(connection, user.uid) if user else None
        if user is None or current is None or current.verifier != user.verifier:
            raise WrongCredentials("wrong user name or password")
        return current

    # Sessions

    def open_session(self, ticket: Ticket, message: OpenSession) -> Session:
        """A child of the ticket's session. Raises EPERM if it is to be trusted and the user is not."""

        def add(connection: Connection) -> StoredSession:
            parent = self._alive(connection, ticket.session)
            if message.trusted and not parent.user.trusted:
                raise fail(errno.EPERM, "an admin must trust you before you may open a trusted session")
            number = store.add_session(
                connection,
                parent.user.uid,
                message.client,
                self._clock(),
                trusted=message.trusted,
                parent=parent.number,
            )
            return self._alive(connection, number)

        return self._mint(self._database.write(add))

    def renew(self, ticket: Ticket) -> Session:
        """New keys and tickets, also for an expired ticket. Raises TicketRefused if the session has ended."""

        def note(connection: Connection) -> StoredSession:
            session = self._alive(connection, ticket.session)
            store.renew_session(connection, session.number, self._clock())
            return session

        return self._mint(self._database.write(note))

    def log_out(self, ticket: Ticket) -> Empty:
        """Ends the session and those opened from it. Ending it again is no error."""
        now = self._clock()
        self._database.write(lambda connection: store.end_session(connection, ticket.session, now))
        log.info("%s logged out: session %x", ticket.user, ticket.session)
        return Empty()

    def _alive(self, connection: Connection, number: int) -> StoredSession:
        """Raises TicketRefused."""
        session = store.session(connection, number)
        if session is None or session.ended is not None:
            raise TicketRefused("the session has ended; log in again")
        if self._clock() - session.renewed > self._config.session_idle_seconds:
            raise TicketRefused("the session was not used for too long; log in again")
        return session

    def _mint(self, stored: StoredSession) -> Session:
        user = stored.user
        return mint(
            self._config.keys.tickets,
            CLIENT_ROLES,
            stored.number,
            user.name,
            stored.client,
            now=self._clock(),
            life_seconds=self._config.ticket_seconds,
            uid=user.uid,
            gids=user.gids,
            admin=user.admin,
            trusted=stored.trusted and user.trusted,
        )

    # Users

    def change_password(self, ticket: Ticket, counter: int, message: ChangePassword) -> bytes:
        """Ends every other session of the user. Raises WrongCredentials, SlowDown or EINVAL."""
        check_new(message.new)
        with self._passwords.slot():
            guess = self._guess(ticket.user, message.old)
            derivation = self._passwords.new_derivation()
            verifier = verifier_of(message.new, derivation)

            def change(connection: Connection) -> Empty:
                session = self._alive(connection, ticket.session)
                user = self._with_same_password(connection, guess.user)
                store.set_password(connection, user.uid, verifier, derivation)
                store.end_other_sessions(connection, user.uid, session.number, self._clock())
                log.info("%s changed the password", user.name)
                return Empty()

            def take_back(connection: Connection) -> None:
                uncount_guess(connection, ticket.user)

            return self._once(ticket, counter, change, take_back)

    def users(self, ticket: Ticket) -> Users:
        """All users. Raises EPERM unless the session's user is an admin."""
        with self._database.read() as connection:
            self._check_admin(connection, ticket)
            return Users([_info(user) for user in store.all_users(connection)])

    def change_user(self, ticket: Ticket, counter: int, uid: int, message: ChangeUser) -> bytes:
        """The user afterwards (UserInfo). Raises ENOENT, or EPERM unless the session's user is an admin."""

        def change(connection: Connection) -> UserInfo:
            self._check_admin(connection, ticket)
            user = store.user_of(connection, uid)
            if user is None:
                raise fail(errno.ENOENT, f"there is no user with the uid {uid}")
            if message.admin is False and user.admin and store.count_admins(connection) == 1:
                raise fail(errno.EPERM, f"{user.name} is the only admin of the realm")
            store.change_user(connection, uid, message)
            log.info("%s changed %s: %s", ticket.user, user.name, message)
            return _info(store.user_of(connection, uid) or user)

        return self._once(ticket, counter, change)

    def _check_admin(self, connection: Connection, ticket: Ticket) -> None:
        if not self._alive(connection, ticket.session).user.admin:
            raise fail(errno.EPERM, "only an admin may do this")

    def _once(
        self,
        ticket: Ticket,
        counter: int,
        change: Callable[[Connection], msgspec.Struct],
        on_success: Callable[[Connection], None] | None = None,
    ) -> bytes:
        """The reply of ``change``, run once for this counter: counters are random here (see
        clients.auth), hence never acknowledged but forgotten with the tickets."""

        def run(connection: Connection) -> bytes | OSError:
            outcome = self._replies.once(connection, ticket.session, counter, 0, lambda: change(connection))
            if on_success and not isinstance(outcome, OSError):
                on_success(connection)
            return outcome

        return settle(self._database.write(run))


def _info(user: User) -> UserInfo:
    return UserInfo(user.name, user.uid, user.gids, user.admin, user.trusted)
