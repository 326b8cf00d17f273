"""The wire that mounts and services use: what its time limits are for, and what each failure is called."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from clients import http
from clients.http import HttpWire
from wire.errors import NeverReached, ReplyLost

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def server(
    answer: Callable[[socket.socket], object],
    request: bytearray | None = None,
    wrap: Callable[[socket.socket], socket.socket] = lambda plain: plain,
) -> Iterator[str]:
    """The URL of a server that takes one connection and one request, which is left in ``request``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with wrap(listener.accept()[0]) as connection:
                first = connection.recv(65536)
                if request is not None:
                    request.extend(first)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


@pytest.fixture
def wire() -> Iterator[HttpWire]:
    wire = HttpWire()
    yield wire
    wire.close()


def test_who_is_connected_may_take_longer_than_connecting(
    wire: HttpWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.1)
    slow = threading.Event()

    def answer(connection: socket.socket) -> None:
        slow.wait(0.5)
        connection.sendall(REPLY)

    with server(answer) as url:
        assert wire.send("GET", f"{url}/x", {}, b"", 10.0).body == b"ok"


def test_a_connection_is_kept_until_the_server_ends_it(wire: HttpWire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        answered: list[int] = []
        ended = [threading.Event(), threading.Event()]

        def serve() -> None:
            for number in range(2):
                connection, _ = listener.accept()
                with connection:
                    while connection.recv(65536) and len(answered) < 2 * (number + 1):
                        answered.append(number)
                        connection.sendall(REPLY)
                        if len(answered) == 2 * (number + 1):
                            break
                ended[number].set()

        thread = threading.Thread(target=serve)
        thread.start()
        for end in ended:
            assert [wire.send("GET", url, {}, b"", 10.0).body for _ in range(2)] == [b"ok"] * 2
            assert end.wait(10)  # a request that is sent just before is lost
        thread.join()
    assert answered == [0, 0, 1, 1]


def test_a_large_body_arrives_whole(wire: HttpWire) -> None:
    body = bytes(range(256)) * 8192
    arrived = bytearray()

    def answer(connection: socket.socket) -> None:
        while not arrived.endswith(body[-1000:]) or len(arrived) < len(body):
            arrived.extend(connection.recv(1 << 20))
        connection.sendall(REPLY)

    with server(answer, arrived) as url:
        assert wire.send("PUT", f"{url}/x", {"A": "b"}, body, 10.0).body == b"ok"
    head, _, rest = bytes(arrived).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[::3] == [b"PUT /x HTTP/1.1", b"Content-Length: 2097152"]
    assert rest == body


def test_over_tls(wire: HttpWire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(connection: socket.socket) -> None:
        connection.sendall(REPLY)

    with server(answer, wrap=lambda plain: context.wrap_socket(plain, server_side=True)) as url:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("CURL_CA_BUNDLE", str(certificate))
        assert wire.send("GET", f"{url}/x".replace("http:", "https:"), {}, b"", 10.0).body == b"ok"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """The files of a certificate for 127.0.0.1 that vouches for itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(here, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate, secret = folder / "certificate", folder / "key"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, secret


def test_silence_is_a_lost_reply_and_ends_the_connection(wire: HttpWire) -> None:
    heard: list[bytes] = []

    def wait_for_the_end(connection: socket.socket) -> None:
        connection.settimeout(10.0)
        heard.append(connection.recv(1))

    with pytest.raises(ReplyLost) as lost, server(wait_for_the_end) as url:
        wire.send("GET", f"{url}/x", {}, b"", 0.1)
    assert heard == [b""], lost  # which has the frames of the call, and all that they know


def test_an_answer_that_breaks_off_is_a_lost_reply(wire: HttpWire) -> None:
    with server(lambda connection: connection.sendall(REPLY[:-1])) as url, pytest.raises(ReplyLost):
        wire.send("POST", f"{url}/x", {}, b"body", 10.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://[::1/x", "http://a..b/x", "http:///x"])
def test_who_is_not_there_was_never_reached(wire: HttpWire, url: str) -> None:
    with pytest.raises(NeverReached):
        wire.send("GET", url, {}, b"", 1.0)
