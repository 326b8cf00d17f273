"""Messages are lost, doubled and answered in vain: whatever is done is done exactly once.

A random workload of two clients in turn is done to the stack and to a model in memory; every step must
have the model's outcome, and at the end both clients and a third, fresh one must see exactly the model.
"""

import errno
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from clients.session import Answer, Wire
from mount.vfs import Changes
from tests.support.inprocess import LossyWire
from tests.support.stack import Client, Stack
from wire.limits import CHUNK_BYTES

STEPS = 120
LOSS = 0.08
FOLDERS = ("", "/d", "/e")
NAMES = ("a", "b", "c")
OFFSETS = (0, 1, 700, CHUNK_BYTES - 2, CHUNK_BYTES)
SIZES = (0, 1, 5, 1000, CHUNK_BYTES - 1, CHUNK_BYTES + 1)


class EchoWire:
    """Delivers some requests a second time, many calls later; nobody hears that answer."""

    def __init__(self, inner: Wire, seed: int) -> None:
        self._inner = inner
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._kept: deque[Callable[[], object]] = deque()
        self.echoes = 0

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """As clients.session.Wire."""
        with self._lock:
            echo = self._kept.popleft() if self._kept and self._random.random() < LOSS else None
            self.echoes += echo is not None
        if echo is not None:
            echo()
        answer = self._inner.send(method, url, headers, body, silence_seconds)
        if method == "POST" and self._random.random() < 2 * LOSS:
            self._kept.append(lambda: self._inner.send(method, url, headers, body, silence_seconds))
        return answer


class Model:
    """A plain namespace: a file's content is a bytearray, shared by its links; a directory's is None."""

    def __init__(self) -> None:
        self.entries: dict[str, bytearray | None] = {}

    def create(self, path: str, data: bytes) -> None:
        self._free(path)
        self.entries[path] = bytearray(data)

    def write(self, path: str, offset: int, data: bytes) -> None:
        content = self._file(path)
        if not data:
            return  # write(2) of nothing does nothing, also beyond the end
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data

    def append(self, path: str, data: bytes) -> None:
        self._file(path).extend(data)

    def truncate(self, path: str, size: int) -> None:
        content = self._file(path)
        content.extend(bytes(max(0, size - len(content))))
        del content[size:]

    def rename(self, old: str, new: str) -> None:
        content = self._file(old)
        self._parent(new)
        if self.entries.get(new) is not content:
            self.entries[new] = self.entries.pop(old)

    def link(self, old: str, new: str) -> None:
        content = self._file(old)
        self._free(new)
        self.entries[new] = content

    def unlink(self, path: str) -> None:
        self._file(path)
        del self.entries[path]

    def mkdir(self, path: str) -> None:
        self._free(path)
        self.entries[path] = None

    def rmdir(self, path: str) -> None:
        if path not in self.entries:
            raise OSError(errno.ENOENT, path)
        if any(other.startswith(f"{path}/") for other in self.entries):
            raise OSError(errno.ENOTEMPTY, path)
        del self.entries[path]

    def _file(self, path: str) -> bytearray:
        content = self.entries.get(path)
        if content is None:
            raise OSError(errno.ENOENT, path)
        return content

    def _parent(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder and folder not in self.entries:
            raise OSError(errno.ENOENT, folder)

    def _free(self, path: str) -> None:
        self._parent(path)
        if path in self.entries:
            raise OSError(errno.EEXIST, path)


def create(client: Client, path: str, data: bytes) -> None:
    with client.opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
        client.vfs.write(handle, 0, data)


def write(client: Client, path: str, offset: int, data: bytes) -> None:
    with client.opened(path, os.O_RDWR) as handle:
        client.vfs.write(handle, offset, data)


Step = tuple[Callable[[Client], object], Callable[[Model], object]]


def draw(choose: random.Random) -> tuple[str, Step]:
    """A step, with what it is called."""
    path = choose.choice(FOLDERS) + "/" + choose.choice(NAMES)
    other = choose.choice(FOLDERS) + "/" + choose.choice(NAMES)
    folder = choose.choice(FOLDERS[1:])
    offset, size = choose.choice(OFFSETS), choose.choice(SIZES)
    data = choose.randbytes(size)
    steps: dict[str, Step] = {
        f"create {path} of {size}": (lambda c: create(c, path, data), lambda m: m.create(path, data)),
        f"create {other} of {size}": (lambda c: create(c, other, data), lambda m: m.create(other, data)),
        f"write {path} {size} at {offset}": (
            lambda c: write(c, path, offset, data),
            lambda m: m.write(path, offset, data),
        ),
        f"append {path} {size}": (lambda c: c.append(path, data), lambda m: m.append(path, data)),
        f"truncate {path} {size}": (
            lambda c: c.set(path, Changes(size=size)),
            lambda m: m.truncate(path, size),
        ),
        f"rename {path} {other}": (lambda c: c.rename(path, other), lambda m: m.rename(path, other)),
        f"link {path} {other}": (lambda c: c.link(path, other), lambda m: m.link(path, other)),
        f"unlink {path}": (lambda c: c.unlink(path), lambda m: m.unlink(path)),
        f"mkdir {folder}": (lambda c: c.mkdir(folder), lambda m: m.mkdir(folder)),
        f"rmdir {folder}": (lambda c: c.rmdir(folder), lambda m: m.rmdir(folder)),
    }
    return choose.choice(list(steps.items()))


def outcome(run: Callable[[], object]) -> str:
    """ "done", or the errno's name."""
    try:
        run()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def instead(wire: Wire, _direct: Wire) -> Wire:
    """For ``Stack.client``: ``wire``, whatever it would have had."""
    return wire


@pytest.mark.parametrize("seed", range(1, 3))
def test_everything_happens_exactly_once(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    with Stack(tmp_path, files=3) as stack:
        echoes = [EchoWire(stack.wire, seed * 10 + number) for number in range(2)]
        wires = [LossyWire(echo, seed * 10 + number, LOSS) for number, echo in enumerate(echoes)]
        pair = [stack.client(wrap=partial(instead, wire), deadline_seconds=30.0) for wire in wires]
        model = Model()
        done: list[str] = []
        for number in range(STEPS):
            client = choose.randrange(2)
            text, (do, expect) = draw(choose)
            expected = outcome(partial(expect, model))
            done.append(f"{number}: {'AB'[client]} {text}: {expected}")
            found = outcome(partial(do, pair[client]))
            assert found == expected, f"seed {seed}: {found} in place of\n" + "\n".join(done)
        for client_seen in (*pair, stack.client()):
            assert client_seen.tree() == model.entries, f"seed {seed}\n" + "\n".join(done)
        assert not any(client.vfs.unsaved() for client in pair)
        assert sum(wire.lost_requests for wire in wires) and sum(wire.lost_replies for wire in wires)
        assert sum(echo.echoes for echo in echoes), "nothing came twice"
