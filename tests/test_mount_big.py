"""What is big: a directory of many entries, a file of a tebibyte."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.ranges import KEEP_SIZE, PUNCH_HOLE
from tests.support.big_directory import Listing, fill
from tests.support.holes import fallocate
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

ENTRIES = 8_000
TIB = 1 << 40


@pytest.fixture(scope="module")
def mounts(shared_realm: RealRealm) -> Iterator[tuple[RealMount, RealMount]]:
    """Two mounts of ``boris``."""
    shared_realm.join("boris")
    with RealMount(shared_realm, "big-1", "boris") as one, RealMount(shared_realm, "big-2", "boris") as two:
        yield one, two


def test_a_big_directory_is_listed_while_it_changes(
    shared_realm: RealRealm, mounts: tuple[RealMount, RealMount], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (mount.path / "many" for mount in mounts)
    one.mkdir()
    monkeypatch.setenv("DFS_STATE", str(shared_realm.state("boris")))
    fill(shared_realm, "boris", one, ENTRIES)
    listing = Listing(one, two)
    assert list(listing.missing(ENTRIES)) == []
    assert sorted(os.listdir(one)) == sorted(os.listdir(two))


def test_a_file_of_a_tebibyte(mounts: tuple[RealMount, RealMount]) -> None:
    one, two = (mount.path for mount in mounts)
    with (one / "far").open("wb") as file:
        file.write(b"the beginning")
        file.seek(TIB - 7)
        file.write(b"the end")
    assert (two / "far").stat().st_size == TIB
    assert (two / "far").stat().st_blocks * 512 <= 16 << 20
    with (two / "far").open("r+b") as file:
        descriptor = file.fileno()
        assert os.lseek(descriptor, 1 << 30, os.SEEK_DATA) > TIB - (16 << 20)
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) < 16 << 20
        assert os.pread(descriptor, 100, TIB - 10) == b"\0\0\0the end"
        assert os.pread(descriptor, 10, TIB // 2) == bytes(10)
        os.pwrite(descriptor, b"middle", TIB // 2)
    copy(one, "--sparse=always")
    assert places(one / "far") == places(two / "copy") == places(one / "copy") == [0, TIB // 2, TIB - 7]
    with (one / "copy").open("r+b") as file:
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, TIB - 7)
        file.truncate(2 * TIB)
    copy(two, "--sparse=auto", "copy", "second")
    assert (two / "second").stat().st_size == 2 * TIB
    assert places(one / "second") == [TIB - 7]
    (one / "second").write_bytes(b"short again")
    assert (two / "second").read_bytes() == b"short again"


def copy(folder: Path, option: str, source: str = "far", target: str = "copy") -> None:
    """cp, which must not read a tebibyte of zeros: there is no time for it."""
    subprocess.run(["cp", option, source, target], cwd=folder, check=True, timeout=60)


def places(path: Path) -> list[int]:
    """Where there is anything but zeros, going by what lseek(2) says is data."""
    found, place = [], 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while place < size:
            try:
                place = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing follows
                break
            end = os.lseek(file.fileno(), place, os.SEEK_HOLE)
            data = os.pread(file.fileno(), end - place, place)
            if data.strip(b"\0"):
                found.append(place + len(data) - len(data.lstrip(b"\0")))
            place = end
    return found
