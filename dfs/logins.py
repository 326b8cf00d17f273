"""The saved login, and sessions opened from it for the length of one command."""

import errno
import getpass
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from clients.auth import AuthClient, fetch_realm, keyring_of, login
from clients.directory import DirectoryClient
from clients.http import HttpWire
from clients.lock import LockClient
from clients.session import Channel
from clients.trust import Trust, normal_url
from mount.proxy import Proxy
from mount.registry import state_folder
from mount.slate import Kept, Slate
from wire.errors import TicketRefused, fail
from wire.messages.auth import Realm, Session
from wire.tickets import Role

log = logging.getLogger(__name__)

REACH_SECONDS = 5.0
"""How long a command tries to reach the realm at all."""


@dataclass(frozen=True)
class Login:
    """A user's saved session at a realm."""

    url: str
    realm: Realm
    session: Session
    auth: AuthClient


@dataclass(frozen=True)
class Services:
    """The services, for a session of the command's own."""

    session: Session
    directory: DirectoryClient
    lock: LockClient


def trust() -> Trust:
    """What this user's client knows of realms."""
    return Trust(state_folder())


def usual_user(realm_url: str) -> str:
    """Whose login is meant when no user is named: who logged in last, else the name on this machine."""
    return trust().default_user(realm_url) or getpass.getuser()


def log_in(realm_url: str, user: str, password_file: Path | None, *, by_default: bool = True) -> Session:
    """Opens a session and saves it as the user's; ``by_default`` makes it the one that is used when no user
    is named. Raises what the server says, or EINVAL without a password."""
    known = trust()
    with closing(HttpWire()) as wire:
        fetch_realm(realm_url, wire, known, REACH_SECONDS)
        text = password(password_file, "DFS_PASSWORD", f"Password of {user}")
        session = login(realm_url, user, text, socket.gethostname(), wire, known)
    known.save(realm_url, session)
    if by_default:
        known.set_default_user(realm_url, user)
    return session


@contextmanager
def saved_login(realm_url: str, user: str = "") -> Iterator[Login]:
    """The session that ``dfs login`` saved. Raises TicketRefused if there is none, or Unavailable."""
    url, known = normal_url(realm_url), trust()
    with closing(HttpWire()) as wire:
        session = known.load(url, user)
        if session is None:
            whose = f" as {user}" if user else ""
            raise TicketRefused(f"not logged in to {url}{whose}: use `dfs login`")
        realm = fetch_realm(url, wire, known, REACH_SECONDS)
        keyring = keyring_of(url, session, wire, lambda new: known.save(url, new))
        yield Login(url, realm, session, AuthClient(url, keyring, wire))


@contextmanager
def own_services(realm_url: str, user: str = "") -> Iterator[Services]:
    """The services under a session of its own, which ends with the block: request numbers are never
    shared with another process. Raises as ``saved_login``."""
    with saved_login(realm_url, user) as saved, closing(HttpWire()) as wire:
        keyring = saved.auth.open_session(here())
        realm = saved.realm
        try:
            yield Services(
                keyring.session,
                DirectoryClient(Channel(wire, realm.directory_url, Role.DIRECTORY, keyring)),
                LockClient(Channel(wire, realm.lock_url, Role.LOCK, keyring)),
            )
        finally:
            AuthClient(saved.url, keyring, wire).logout()


@contextmanager
def client(
    realm_url: str,
    name: str,
    user: str = "",
    *,
    trusted: bool = False,
    deadline_seconds: float = 30.0,
    slate: Slate | None = None,
    promised: bool = False,
) -> Iterator[Proxy]:
    """The realm as one object, in a session of its own, which people know by ``name`` and which ends with the
    block. A ``slate`` with an earlier worker's session: in that one, and no server is asked for it.
    ``promised`` as in Proxy. Raises as ``saved_login``; EPERM if it is to be trusted and no admin has
    granted that."""
    url, slate = normal_url(realm_url), slate or Slate()
    with closing(HttpWire()) as wire:
        kept = slate.session or _new_session(slate, url, name, user, trusted=trusted)

        def keep(session: Session) -> None:
            slate.keep_session(kept.realm, session, time.monotonic())

        keyring = keyring_of(url, kept.session, wire, keep, kept.received)
        proxy = Proxy(kept.realm, keyring, wire, deadline_seconds, slate, promised=promised)
        proxy.start()
        try:
            yield proxy
        finally:
            proxy.close()
            try:
                AuthClient(url, keyring, wire).logout()
            except OSError as error:
                log.info("the session is left to expire: %s", error)


def _new_session(slate: Slate, url: str, name: str, user: str, *, trusted: bool) -> Kept:
    with saved_login(url, user) as saved:
        session = saved.auth.open_session(name, trusted).session
        return slate.keep_session(saved.realm, session, time.monotonic())


def here() -> str:
    """What sessions of this command are called, for people."""
    return f"{socket.gethostname()}:dfs[{os.getpid()}]"


def password(file: Path | None, variable: str, prompt: str, confirm: bool = False) -> str:
    """From ``file``, else from the environment, else asked for at the terminal; never an argument, which
    everybody on the machine could see. Raises EINVAL if there is none."""
    if file is not None:
        try:
            text = file.read_text()
        except UnicodeDecodeError as error:
            raise fail(errno.EINVAL, f"{file} is not a text file") from error
        found = text.removesuffix("\n")
    elif variable in os.environ:
        found = os.environ[variable]
    elif sys.stdin.isatty():
        found = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    else:
        raise fail(errno.EINVAL, f"no password: there is no terminal to ask at; use a file or ${variable}")
    if not found:
        raise fail(errno.EINVAL, "the password is empty")
    return found
