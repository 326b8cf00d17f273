"""What somebody who listens on the network learns: that there is traffic, and neither names nor contents.

Needs root, for a packet socket on the loopback device, and /dev/fuse; skipped elsewhere.
"""

import base64
import os
import re
import socket
import threading
from pathlib import Path
from typing import Self

import pytest

from tests.support.mounts import RealMount
from tests.support.realm import RealRealm

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may open a packet socket"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse"),
]

ALL_PROTOCOLS = 0x0003
"""ETH_P_ALL of <linux/if_ether.h>."""
BUFFER_BYTES = 256 * 2**20
RECEIVE_BUFFER_FORCE = 33
"""SO_RCVBUFFORCE of <asm-generic/socket.h>."""
PACKET_STATISTICS = 6
"""Of <linux/if_packet.h>: how many packets came, and how many of them were dropped."""
SOL_PACKET = 263
ETHERNET_BYTES = 14
TCP = 6

USER = "wiretapped"
PASSWORD = "swordfish-under-the-bed"
DIRECTORY = "cellar-of-the-tower"
FILE = "letter-to-the-admiral.txt"
RENAMED = "burn-after-reading.txt"
XATTR = "user.hiding-place-of-keys"
XATTR_VALUE = "beneath-the-seventh-flagstone"
SENTENCE = b"The fleet sails at dawn from the northern harbour, with forty guns. "
CONTENT = SENTENCE * 200
BIG = b"".join(SENTENCE + b"%08d " % number for number in range(70_000))
"""More than a chunk; and another text than the small file's."""
PIECE_BYTES = 16


class Capture:
    """All TCP segments on ``lo`` from or to ``ports``, joined a direction: what a listener would read."""

    def __init__(self, ports: set[int]) -> None:
        self._ports = ports
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        self._socket.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER_FORCE, BUFFER_BYTES)
        self._socket.bind(("lo", ALL_PROTOCOLS))
        self._streams: dict[bytes, dict[int, bytes]] = {}
        self._end = os.urandom(16)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # What was sent before this packet is read before it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(self._end, ("127.0.0.1", 9))
        self._thread.join()
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._socket.close()
        assert int.from_bytes(statistics[4:], "little") == 0, "packets were dropped: nothing is proved"

    def _run(self) -> None:
        while not (frame := self._socket.recv(65536 + ETHERNET_BYTES)).endswith(self._end):
            self._take(frame[ETHERNET_BYTES:])

    def _take(self, packet: bytes) -> None:
        if packet[0] >> 4 != 4 or packet[9] != TCP:
            return
        segment = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
        ports = {int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big")}
        data = segment[(segment[12] >> 4) * 4 :]
        if ports & self._ports and data:
            stream = self._streams.setdefault(packet[12:20] + segment[:4], {})
            stream[int.from_bytes(segment[4:8], "big")] = data

    def streams(self) -> list[bytes]:
        """What went over each connection in each direction, in the order of the sequence numbers."""
        return [b"".join(data for _, data in sorted(parts.items())) for parts in self._streams.values()]


def disguises(secret: bytes) -> list[bytes]:
    """The secret as it might be seen: plain, in hex, and in base64 at each of its three offsets."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret)
        # The characters at both ends are of the neighbours too.
        inner = encoded[4 if offset else 0 : len(encoded) - 4]
        found += [inner, inner.translate(bytes.maketrans(b"+/", b"-_"))]
    return found


def pieces(content: bytes) -> set[bytes]:
    """Every piece of a periodic text."""
    period = content[: len(SENTENCE) + 9 + PIECE_BYTES]
    return {period[begin : begin + PIECE_BYTES] for begin in range(len(period) - PIECE_BYTES)}


def use(realm: RealRealm) -> list[Path]:
    """A session: everything that a user does with a file. The mountpoints that were used."""
    password = realm.password_file(USER, PASSWORD)
    for verb in ("signup", "login"):
        realm.run(verb, USER, "--password-file", str(password), user=USER)
    with RealMount(realm, "mountpoint-of-the-writer", USER) as writer:
        folder = writer.path / DIRECTORY
        folder.mkdir()
        (folder / FILE).write_bytes(CONTENT)
        (folder / "big").write_bytes(BIG)
        os.setxattr(folder / FILE, XATTR, XATTR_VALUE.encode())
        os.symlink(FILE, folder / "link")
        with RealMount(realm, "mountpoint-of-the-reader", USER) as reader:
            there = reader.path / DIRECTORY
            assert (there / FILE).read_bytes() == CONTENT
            assert (there / "big").read_bytes() == BIG
            assert os.getxattr(there / FILE, XATTR) == XATTR_VALUE.encode()
            assert os.readlink(there / "link") == FILE
            assert sorted(os.listdir(there)) == ["big", FILE, "link"]
            (there / FILE).rename(there / RENAMED)
            # Who waits is told who has the lock, and where.
            realm.run("locks", user=USER)
            realm.run("where", str(there / RENAMED), user=USER)
            return [writer.path, reader.path]


def test_a_listener_learns_neither_names_nor_contents(realm: RealRealm) -> None:
    told = realm.status()["services"]
    ports = {int(port) for service in told for port in re.findall(r":(\d+)", service.get("url", ""))}
    assert len(ports) == 5, told
    with Capture(ports) as capture:
        mountpoints = use(realm)
    streams = capture.streams()
    heard = b"\n".join(streams)
    # It has heard what was done, and understood the rest of the protocol.
    for line in (b"POST /v1/signup ", b"POST /v1/login ", b"POST /v1/mutations ", b"PUT /v1/chunks/"):
        assert line in heard
    for line in (
        b"GET /v1/chunks/",
        b"POST /v1/list ",
        b"POST /v1/locks/acquire ",
        b"application/vnd.dfs.sealed",
    ):
        assert line in heard
    assert len(heard) > 2 * len(BIG), "the chunks went there, to the other replica, and back"

    secrets = [PASSWORD, DIRECTORY, FILE, RENAMED, XATTR, XATTR_VALUE, *map(str, mountpoints)]
    secrets += [path.name for path in mountpoints]
    looked_for = [secret.encode() for secret in secrets] + sorted(pieces(CONTENT) | pieces(BIG))
    for secret in looked_for:
        for disguise in disguises(secret):
            assert disguise not in heard, f"{secret!r} was heard as {disguise!r}"


def test_the_listener_would_understand_what_is_not_sealed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Capture({port}) as capture, socket.create_connection(("127.0.0.1", port)) as client:
            peer, _ = server.accept()
            with peer:
                client.sendall(b"prefix " + base64.b64encode(b"x" + FILE.encode() + b"yz") + b" suffix")
                client.sendall(PASSWORD.encode().hex().encode() + CONTENT)
                client.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 20):
                    pass
    (heard,) = capture.streams()
    assert CONTENT in heard
    for secret in (FILE.encode(), PASSWORD.encode(), SENTENCE[:PIECE_BYTES]):
        assert any(disguise in heard for disguise in disguises(secret))
    assert not any(disguise in heard for disguise in disguises(XATTR_VALUE.encode()))
