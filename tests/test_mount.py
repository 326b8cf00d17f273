"""Two mounts of one realm, with real processes: what one writes, the other sees."""

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import RealMount
from tests.support.realm import RealRealm
from tests.support.times import wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")


@pytest.fixture(scope="module")
def mounts(shared_realm: RealRealm) -> Iterator[tuple[RealMount, RealMount]]:
    """Two mounts of the same user."""
    shared_realm.join("mona")
    with RealMount(shared_realm, "mona-1", "mona") as one, RealMount(shared_realm, "mona-2", "mona") as two:
        yield one, two


@pytest.fixture
def places(mounts: tuple[RealMount, RealMount], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A fresh directory, as both mounts show it."""
    name = request.node.name.replace("/", "_")
    (mounts[0].path / name).mkdir()
    return mounts[0].path / name, mounts[1].path / name


def test_the_next_open_sees_the_last_close(places: tuple[Path, Path]) -> None:
    one, two = places
    for number in range(30):
        (one / "file").write_text(f"round {number}")
        assert (two / "file").read_text() == f"round {number}"
        with (two / "file").open("a") as file:
            file.write(" and more")
        assert (one / "file").read_text() == f"round {number} and more"


def test_a_reader_that_has_the_file_open_hides_nothing_from_the_next(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("first")
    with (two / "file").open() as early:
        assert early.read() == "first"
        for number in range(10):
            with (one / "file").open("a") as file:
                file.write(f" {number}")
            assert (two / "file").read_text().endswith(f" {number}")


def test_names_are_there_at_once(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "a").write_text("a")
    (one / "a").rename(one / "b")
    assert os.listdir(two) == ["b"]
    assert (two / "b").read_text() == "a"
    with pytest.raises(FileNotFoundError):
        (two / "a").open()
    (two / "b").unlink()
    with pytest.raises(FileNotFoundError):
        (one / "b").open()
    (one / "dir").mkdir()
    os.symlink("../elsewhere", one / "link")
    assert os.readlink(two / "link") == "../elsewhere"
    os.link(one / "link", one / "other", follow_symlinks=False)
    assert sorted(os.listdir(two)) == ["dir", "link", "other"]


def test_rename_over_a_file_replaces_it_for_everybody(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("old")
    assert (two / "file").read_text() == "old"
    (one / "new").write_text("new")
    (one / "new").rename(one / "file")
    assert (two / "file").read_text() == "new"


def test_big_content_and_holes(places: tuple[Path, Path]) -> None:
    one, two = places
    blocks = [os.urandom(1 << 20) for _ in range(11)]
    with (one / "big").open("wb") as file:
        for block in blocks:
            file.write(block)
    assert (two / "big").read_bytes() == b"".join(blocks)
    with (two / "big").open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"in the middle")
        file.truncate(20_000_000)
    content = bytearray(b"".join(blocks).ljust(20_000_000, b"\0"))
    content[5_000_000:5_000_013] = b"in the middle"
    assert (one / "big").read_bytes() == content
    os.truncate(one / "big", 4_194_305)
    os.truncate(one / "big", 8_000_000)
    assert (two / "big").read_bytes() == bytes(content[:4_194_305]).ljust(8_000_000, b"\0")


def test_attributes(places: tuple[Path, Path]) -> None:
    one, two = places
    file = one / "file"
    file.write_text("x")
    file.chmod(0o640)
    os.utime(file, ns=(1_000_000_007, 2_000_000_009))
    os.setxattr(file, "user.note", b"value")
    found = (two / "file").stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_007, 2_000_000_009)
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
    assert os.getxattr(two / "file", "user.note") == b"value"
    assert os.listxattr(two / "file") == ["user.note"]
    with pytest.raises(OSError, match="No data") as caught:
        os.getxattr(two / "file", "user.other")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError, match="too long"):
        (one / ("n" * 256)).touch()
    assert os.statvfs(two).f_namemax == 255


def test_explicit_times_set_while_writing_win(places: tuple[Path, Path]) -> None:
    one, two = places
    with (one / "file").open("wb") as file:
        file.write(b"content")
        file.flush()
        os.utime(file.fileno(), ns=(5, 6))
        os.fchmod(file.fileno(), 0o444)
    found = (two / "file").stat()
    assert (found.st_mtime_ns, stat.S_IMODE(found.st_mode), found.st_size) == (6, 0o444, 7)


def test_appends_of_four_processes_on_two_mounts_lose_nothing(places: tuple[Path, Path]) -> None:
    lines = 50
    script = 'for i in $(seq {n}); do echo "{who} $i" >> {path} || exit 1; done'
    processes = [
        subprocess.Popen(["bash", "-c", script.format(n=lines, who=who, path=places[who % 2] / "log")])
        for who in range(4)
    ]
    assert [process.wait(100) for process in processes] == [0, 0, 0, 0]
    found = (places[0] / "log").read_text().splitlines()
    assert sorted(found) == sorted(f"{who} {i}" for who in range(4) for i in range(1, lines + 1))


def test_the_content_is_there_when_the_name_has_gone(places: tuple[Path, Path]) -> None:
    one, _ = places
    with (one / "file").open("w+b") as file:
        file.write(b"some content")
        file.flush()
        (one / "file").unlink()
        assert not [name for name in os.listdir(one) if not name.startswith(".fuse_hidden")]
        file.seek(0)
        assert file.read() == b"some content"
        file.write(b" and more")
        file.seek(0)
        assert file.read() == b"some content and more"
    wait_until(lambda: not os.listdir(one))  # libfuse's own name for it goes with the release
