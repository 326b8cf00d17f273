"""Moving bytes over HTTP/1.1 and TLS: requests does it, because it knows about certificates.

Imported by clients.http when the first https:// address is asked: requests takes as long to import as the
rest of a client does, and most processes never need it.
"""

from collections.abc import Mapping

import requests
from urllib3.exceptions import HTTPError

from clients.session import Answer
from wire.errors import NeverReached, ReplyLost
from wire.headers import SEALED
from wire.limits import BODY_BYTES_MAX


class TlsWire:
    """A ``clients.session.Wire`` for https:// addresses. Thread-safe."""

    def __init__(self, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._session = requests.Session()

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """Raises NeverReached or ReplyLost."""
        try:
            response = self._session.request(
                method,
                url,
                headers=dict(headers),
                data=body or None,
                timeout=(min(self._connect_seconds, silence_seconds), silence_seconds),
                allow_redirects=False,
                stream=True,
            )
        except (requests.ConnectTimeout, requests.exceptions.SSLError) as error:
            raise NeverReached(f"{url} does not answer, or not as it should: {error}") from error
        except requests.RequestException as error:
            raise ReplyLost(f"the connection to {url} broke: {error}") from error
        try:
            with response:
                data = response.raw.read(BODY_BYTES_MAX + 1, decode_content=False)
        except (HTTPError, OSError) as error:
            raise ReplyLost(f"the answer of {url} broke off: {error}") from error
        return Answer(response.status_code, response.headers.get("Content-Type") == SEALED, data)

    def close(self) -> None:
        """Closes the kept connections."""
        self._session.close()
