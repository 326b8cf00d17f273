"""The n-th call fails, and all that follow, until the wire is healed: n = 1, 2, 3 … until none fails.

After each fault in the life of a file, what the directory shows is what it showed before the interrupted
step or what it shows after it; what was written and not acknowledged is there or in a conflict copy.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from clients.session import Answer, Wire
from mount import later_commits, recovery
from mount.vfs import Changes
from tests.support.stack import Client, Stack
from tests.support.times import wait_until
from wire.errors import NeverReached, ReplyLost
from wire.limits import CHUNK_BYTES

DEADLINE_SECONDS = 0.1
SETTLE_SECONDS = 20.0
CALLS_MAX = 200
FIRST = bytes(range(250)) * (CHUNK_BYTES // 250 + 5)
PATCH = b"overwritten" * 100
PATCH_AT = CHUNK_BYTES - 500
SECOND = FIRST[:PATCH_AT] + PATCH + FIRST[PATCH_AT + len(PATCH) :]
CUT = CHUNK_BYTES - 7


class FaultWire:
    """From call ``number`` on nothing arrives; with ``loses_reply`` that one arrives and only its answer
    is lost. Renewals, which come with time, are not counted."""

    def __init__(self, number: int, loses_reply: bool) -> None:
        self._inner: Wire
        self._number = number
        self._loses_reply = loses_reply
        self._lock = threading.Lock()
        self._count = 0
        self._is_healed = False
        self.failed: list[str] = []

    def wrap(self, inner: Wire) -> Wire:
        """Stands before ``inner`` from now on."""
        self._inner = inner
        return self

    def heal(self) -> None:
        """From now on everything arrives."""
        self._is_healed = True

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_seconds: float
    ) -> Answer:
        """As clients.session.Wire."""
        with self._lock:
            self._count += not url.endswith("/renew")
            count = self._count
        if self._is_healed or count < self._number:
            return self._inner.send(method, url, headers, body, silence_seconds)
        self.failed.append(f"{method} {url}")
        if len(self.failed) == 1 and self._loses_reply:
            self._inner.send(method, url, headers, body, silence_seconds)
            raise ReplyLost("the answer is lost on purpose")
        raise NeverReached("lost on purpose")


@dataclass(frozen=True)
class Step:
    """What is done, what the folder has afterwards, and what was written so far, flushed or not."""

    name: str
    run: Callable[[], object]
    after: Mapping[str, bytes]
    written: bytes = b""


class Life:
    """One file's, in a folder of its own."""

    def __init__(self, client: Client, folder: str) -> None:
        self._client = client
        self._file, self._renamed = f"{folder}/file", f"{folder}/renamed"
        self.handle: int | None = None
        self.steps = [
            Step("create", self._create, {"file": b""}),
            Step("write", lambda: self._write(FIRST, 0), {"file": b""}, FIRST),
            Step("flush", self._flush, {"file": FIRST}, FIRST),
            Step("overwrite", lambda: self._write(PATCH, PATCH_AT), {"file": FIRST}, SECOND),
            Step("flush again", self._flush, {"file": SECOND}, SECOND),
            Step("rename", lambda: client.rename(self._file, self._renamed), {"renamed": SECOND}),
            Step("truncate", self._truncate, {"renamed": SECOND[:CUT]}),
            Step("close", self.close, {"renamed": SECOND[:CUT]}),
            Step("unlink", lambda: client.unlink(self._renamed), {}),
        ]

    def _create(self) -> None:
        self.handle = self._client.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def _write(self, data: bytes, offset: int) -> None:
        assert self.handle is not None
        for start in range(0, len(data), 2**20):
            self._client.vfs.write(self.handle, offset + start, data[start : start + 2**20])

    def _flush(self) -> None:
        assert self.handle is not None
        self._client.vfs.flush(self.handle)

    def _truncate(self) -> None:
        self._client.set(self._renamed, Changes(size=CUT))

    def close(self) -> None:
        """close(2), if it is open."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._client.close_handle(handle)

    def live(self) -> tuple[Step | None, Mapping[str, bytes]]:
        """Until a step fails: that step, and what the folder had before it."""
        before: Mapping[str, bytes] = {}
        for step in self.steps:
            try:
                step.run()
            except OSError:
                return step, before
            before = step.after
        return None, before


def look(observer: Client, folder: str) -> tuple[dict[str, bytes], list[bytes]]:
    """The files of the folder, and the contents of conflict copies there."""
    found = {name: observer.read(f"{folder}/{name}") for name in observer.names(folder)}
    copies = [content for name, content in found.items() if " (conflict " in name]
    return {name: content for name, content in found.items() if " (conflict " not in name}, copies


def check(observer: Client, folder: str, step: Step, before: Mapping[str, bytes], said: str) -> None:
    """What must hold after ``step`` was interrupted."""
    files, copies = look(observer, folder)
    sizes = {name: len(content) for name, content in files.items()}
    assert files in (dict(before), dict(step.after)), f"{said}: {sizes}, {len(copies)} copies"
    if step.written:
        assert step.written in (*files.values(), *copies), f"{said}: {sizes}, {len(copies)} copies"
    if step.name in ("create", "rename", "close", "unlink"):
        assert not copies, f"{said}: {len(copies)} conflict copies of what was acknowledged"
    assert len(copies) <= 1, said


def go_on(stack: Stack, client: Client, life: Life) -> Client:
    """The program closes its file; the mount goes on."""
    try:
        life.close()
    except OSError:
        pass  # said before, and said again
    wait_until(lambda: not client.vfs.unsaved(), SETTLE_SECONDS)
    return client


def die_and_recover(stack: Stack, client: Client, life: Life) -> Client:
    """The mount is killed, and another begins on its cache folder."""
    client.kill()
    return restart(stack, client)


def die_and_recover_later(stack: Stack, client: Client, life: Life) -> Client:
    """The same, when the leases of the dead have ended."""
    client.kill()
    stack.advance_locks()
    return restart(stack, client)


def restart(stack: Stack, dead: Client) -> Client:
    """Another mount on the same cache folder."""
    again = stack.client(dead.cache, started=False)
    again.recovery.run()
    assert again.recovery.left() == []
    assert not again.copies.dirty_inos()
    again.start()
    stack.advance_locks()
    holders = stack.lock_holders().values()
    assert dead.proxy.keyring.session.session not in holders, "the dead keep a lock"
    return again


@pytest.mark.parametrize("ending", [go_on, die_and_recover, die_and_recover_later])
@pytest.mark.parametrize("loses_reply", [False, True])
def test_every_call_may_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    loses_reply: bool,
    ending: Callable[[Stack, Client, Life], Client],
) -> None:
    monkeypatch.setattr(later_commits, "RETRY_SECONDS", (0.02,))
    # Here leases end at a word only: recovery would wait in vain for those of the dead.
    monkeypatch.setattr(recovery, "_lock_of_the_dead", lambda proxy, ino: proxy.write_locks.acquire(ino, 0.0))
    caplog.set_level(logging.ERROR)
    interrupted = set()
    with Stack(tmp_path) as stack:
        observer = stack.client()
        for number in range(1, CALLS_MAX):
            folder = f"/{number}"
            observer.mkdir(folder)
            wire = FaultWire(number, loses_reply)
            client = stack.client(wrap=wire.wrap, deadline_seconds=DEADLINE_SECONDS)
            life = Life(client, folder)
            step, before = life.live()
            wire.heal()
            if step is None and not wire.failed:
                break
            client = ending(stack, client, life)
            if step is not None:
                said = f"{step.name} failed at call {number}, {wire.failed[0]}"
                interrupted.add(step.name)
                check(observer, folder, step, before, said)
                again_and_again(client, folder)
            client.close()
    assert {"create", "flush", "flush again", "rename", "truncate", "unlink"} <= interrupted


def again_and_again(client: Client, folder: str) -> None:
    """Whatever happened: names and content can be changed by those who go on."""
    for name in client.names(folder):
        client.append(f"{folder}/{name}", b"!")
    client.write(f"{folder}/new", b"new")
    assert client.read(f"{folder}/new") == b"new"
    assert not client.vfs.unsaved()
