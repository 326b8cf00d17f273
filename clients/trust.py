"""What a client keeps on disk about realms: whose key it trusts, and its sessions.

::

    STATE/realms/<realm URL, quoted>/fingerprint      of the key that was there first; compared ever after
                                     default          the user who logged in last
                                     <user>.session   the saved session (MessagePack)

Folders are 0700, files 0600 and replaced as a whole. Several processes may use them at once.
"""

import errno
import os
import tempfile
from pathlib import Path
from urllib.parse import quote, urlsplit

from wire import codec
from wire.errors import BadMessage, fail
from wire.messages.auth import Session
from wire.names import check_user_name
from wire.sealing import fingerprint


def normal_url(realm_url: str) -> str:
    """One spelling of a realm's URL. Raises EINVAL unless it is one of http or https."""
    try:
        parts = urlsplit(realm_url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_url = False
    if not is_url:
        raise fail(errno.EINVAL, f"{realm_url!r} is not the URL of a realm, like http://host:7000")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


class Trust:
    """The folder ``state`` belongs to the caller; what is here is in a folder of its own inside."""

    def __init__(self, state: Path) -> None:
        self._realms = state / "realms"

    def check_key(self, realm_url: str, public_key: bytes) -> None:
        """Pins the realm's key if it is the first one. Raises EKEYREJECTED if it is another one."""
        path = self._folder(realm_url) / "fingerprint"
        seen = fingerprint(public_key)
        pinned = _read(path)
        if pinned is None:
            pinned = _write(path, f"{seen}\n".encode(), replace=False)
        if pinned.decode(errors="replace").strip() != seen:
            raise fail(
                errno.EKEYREJECTED,
                f"the key of {realm_url} is {seen} and not {pinned.decode(errors='replace').strip()} as"
                f" before: if the realm has a new key, remove {path}; if not, somebody is listening",
            )

    def save(self, realm_url: str, session: Session) -> None:
        """Keeps a session for the next process."""
        _write(self._session_path(realm_url, session.user), codec.encode(session))

    def load(self, realm_url: str, user: str = "") -> Session | None:
        """The saved session of ``user``, or of the default user; None if there is none."""
        user = user or self.default_user(realm_url)
        if not user:
            return None
        path = self._session_path(realm_url, user)
        data = _read(path)
        if data is None:
            return None
        try:
            return codec.decode(data, Session)
        except BadMessage as error:
            raise fail(errno.EINVAL, f"{path} is no saved session: remove it and log in again") from error

    def forget(self, realm_url: str, user: str) -> None:
        """Removes the saved session, if there is one."""
        self._session_path(realm_url, user).unlink(missing_ok=True)
        if self.default_user(realm_url) == user:
            (self._folder(realm_url) / "default").unlink(missing_ok=True)

    def set_default_user(self, realm_url: str, user: str) -> None:
        """Whose session ``load`` finds without a name."""
        check_user_name(user)
        _write(self._folder(realm_url) / "default", f"{user}\n".encode())

    def default_user(self, realm_url: str) -> str:
        """The user who logged in last, or nothing."""
        data = _read(self._folder(realm_url) / "default")
        return "" if data is None else data.decode(errors="replace").strip()

    def _folder(self, realm_url: str) -> Path:
        return self._realms / quote(normal_url(realm_url), safe="")

    def _session_path(self, realm_url: str, user: str) -> Path:
        check_user_name(user)  # it becomes a file's name
        return self._folder(realm_url) / f"{user}.session"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes, *, replace: bool = True) -> bytes:
    """Writes the file, durably and as a whole, and returns what is in it: without ``replace`` that is
    what another process has written first."""
    realms = path.parent.parent
    realms.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (realms, path.parent):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        return path.read_bytes()
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_folder(path.parent)
    return data


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
