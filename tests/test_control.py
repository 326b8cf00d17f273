"""The control socket of a mount: what is asked is answered, and what is refused keeps its errno."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mount.control import Reply, Request, ask
from mount.control_server import ControlServer
from tests.support.stack import Client, Stack
from wire.errors import from_problem

DEEP = "a-state-folder-that-is-deeper-than-an-address-of-a-socket-is-long/" * 3


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Stack(tmp_path / "realm") as stack:
        yield stack.client()


@pytest.fixture
def control(client: Client, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / DEEP / "x.sock"
    path.parent.mkdir(parents=True)
    server = ControlServer(path, client.proxy, client.vfs, client.recovery)
    yield path
    server.close()
    assert not path.exists()


def test_what_is_dirty_is_counted_and_committed(client: Client, control: Path) -> None:
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    handle = client.open("/file", os.O_RDWR | os.O_CREAT)
    client.vfs.write(handle, 0, b"content")
    assert ask(str(control), Request("status")).unsaved == 1
    assert ask(str(control), Request("write-back")).unsaved == 0
    where = ask(str(control), Request("where", client.walk("/file").ino)).where
    assert where is not None
    assert (where.size, where.local_dirty, len(where.chunks)) == (7, False, 1)
    assert (where.local_version, where.local_lacking) == (where.version, 0)
    client.close_handle(handle)
    assert ask(str(control), Request("drop-cache")) == Reply()


@pytest.mark.parametrize(
    ("request_", "number"), [(Request("where", 2**40), errno.ENOENT), (Request("dance"), errno.EINVAL)]
)
def test_what_is_refused_keeps_its_errno(control: Path, request_: Request, number: int) -> None:
    with pytest.raises(OSError, check=lambda error: error.errno == number):
        ask(str(control), request_)


def test_what_is_no_question_is_said_to_be_none(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(control.parent)
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as lines:
        connection.connect(control.name)
        connection.sendall(b"dance\n")
        problem = msgspec.json.decode(lines.readline(), type=Reply).problem
    assert problem is not None
    assert from_problem(problem).errno == errno.EINVAL
