"""Files that the kernel serves itself, past the mount: nothing about them is different but how fast it is.

What concerns content alone is tested of mounts that serve everything themselves too.
"""

import errno
import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mount.control import Request, ask
from mount.registry import mountpoints
from tests.support.exerciser import Exerciser
from tests.support.mounts import RealMount, conflict_copies
from tests.support.processes import disk_name
from tests.support.programs import Program
from tests.support.realm import RealRealm
from tests.support.times import wait_until
from tests.test_mount_locks import break_lock, lock_of

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

MIB = 1024 * 1024
BIG = 3 * MIB + 5
"""More than what is served from pages, and not written past the mount if it is opened to be read too."""

ALONE_SECONDS = 10.0
MAP_GONE_SECONDS = 6.0
"""A map that is gone is found out within a second, on a machine that is not busy."""

DISK_BYTES, BALLAST_BYTES = 24 * MIB, 8 * MIB
SEEDS = (2, 3, 4, 7, 9, 11)


class Pair(NamedTuple):
    """A folder as two mounts show it, and those."""

    here: Path
    there: Path
    one: RealMount
    two: RealMount


@pytest.fixture(scope="module")
def user(shared_realm: RealRealm) -> str:
    """Whose the mounts are."""
    shared_realm.join("petra")
    return "petra"


def two_mounts(realm: RealRealm, user: str, name: str, *options: str, binding: str) -> Iterator[Pair]:
    with (
        RealMount(realm, f"{name}-1", user, "--lock-wait", "6", *options, binding=binding) as one,
        RealMount(realm, f"{name}-2", user, "--lock-wait", "6", *options, binding=binding) as two,
    ):
        yield Pair(one.path, two.path, one, two)
        wait_until(lambda: unsaved(one) == unsaved(two) == 0)


@pytest.fixture(scope="module")
def passing(shared_realm: RealRealm, user: str) -> Iterator[Pair]:
    """Mounts of which the kernel serves open files."""
    for pair in two_mounts(shared_realm, user, "passing", binding="native"):
        if not pair.one.record().passthrough:
            pytest.skip("the kernel serves no open files itself here")
        yield pair


@pytest.fixture(scope="module")
def serving(shared_realm: RealRealm, user: str) -> Iterator[Pair]:
    """Mounts that serve everything themselves."""
    for pair in two_mounts(shared_realm, user, "serving", "--no-passthrough", binding="native"):
        assert not pair.one.record().passthrough
        yield pair


@pytest.fixture(scope="module")
def through_libfuse(shared_realm: RealRealm, user: str) -> Iterator[Pair]:
    """The same through libfuse."""
    yield from two_mounts(shared_realm, user, "libfuse", binding="fusepy")


def in_folder(pair: Pair, request: pytest.FixtureRequest) -> Pair:
    name = f"{request.node.name}".replace("/", "_")
    (pair.here / name).mkdir()
    return pair._replace(here=pair.here / name, there=pair.there / name)


@pytest.fixture
def pair(passing: Pair, request: pytest.FixtureRequest) -> Pair:
    """A folder of this test's own, of mounts of which the kernel serves open files."""
    return in_folder(passing, request)


@pytest.fixture(params=["passing", "serving", "through_libfuse"])
def any_pair(request: pytest.FixtureRequest) -> Pair:
    """A folder of this test's own, of all kinds of mounts."""
    return in_folder(request.getfixturevalue(request.param), request)


@pytest.fixture
def program() -> Iterator[Program]:
    """A program that does what it is told."""
    with Program() as program:
        yield program


def unsaved(mount: RealMount) -> int:
    """How many files of a mount are not committed."""
    return ask(mount.record().control, Request("status")).unsaved


def goes_past(mount: RealMount, path: Path) -> bool:
    """Whether the local copy of an open file, which was not written to since the last fsync, may be changed
    past the mount: see SparseFile.mark."""
    number = path.stat().st_ino
    return any(
        file.name == str(number) and file.stat().st_mtime_ns == 10**9
        for file in (mount.cache / "copies").rglob("*")
    )


def past(pair: Pair, name: str) -> bool:
    return goes_past(pair.one, pair.here / name)


def reads(path: Path) -> bytes:
    return path.read_bytes()


# Writing


@pytest.mark.parametrize("more", [0, os.O_APPEND, os.O_TRUNC, os.O_CREAT], ids=["", "append", "cut", "new"])
def test_what_is_written_is_what_the_other_mount_reads(any_pair: Pair, more: int) -> None:
    base, data = os.urandom(BIG), os.urandom(BIG + 100)
    if more != os.O_CREAT:
        (any_pair.there / "file").write_bytes(base)
        assert reads(any_pair.here / "file") == base, "a complete copy"
    file = os.open(any_pair.here / "file", os.O_WRONLY | more, 0o600)
    before = time.time()
    for at in range(0, len(data), 100_000):
        os.write(file, data[at : at + 100_000])
    found = os.fstat(file)
    expected = base + data if more == os.O_APPEND else data
    assert found.st_size == (any_pair.here / "file").stat().st_size == len(expected)
    assert before - 1 < found.st_mtime < time.time() + 1
    os.fsync(file)
    assert reads(any_pair.there / "file") == expected
    assert past(any_pair, "file") == any_pair.one.record().passthrough
    os.pwrite(file, b"at last", 0)  # at the end, if it appends: see pwrite(2)
    os.close(file)
    expected = expected + b"at last" if more == os.O_APPEND else b"at last" + expected[7:]
    assert reads(any_pair.there / "file") == reads(any_pair.here / "file") == expected
    assert abs((any_pair.there / "file").stat().st_mtime - time.time()) < 60


def test_several_that_write_one_file_at_once(any_pair: Pair) -> None:
    data = os.urandom(BIG)
    first = os.open(any_pair.here / "file", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(first, data)
    both = os.open(any_pair.here / "file", os.O_RDWR)
    last = os.open(any_pair.here / "file", os.O_WRONLY | os.O_APPEND)
    os.pwrite(both, b"both", 10)
    os.write(last, b"last")
    os.ftruncate(both, MIB)
    assert os.fstat(first).st_size == MIB
    os.write(last, b"again")
    os.write(first, b"first")
    assert os.pread(both, 20, 0) == data[:10] + b"both" + data[14:20]
    assert os.pread(both, 20, MIB) == b"again" + bytes(15)
    expected = data[:10] + b"both" + data[14:MIB] + b"again" + bytes(BIG - MIB - 5) + b"first"
    for file in (both, first, last):
        os.close(file)
        assert reads(any_pair.there / "file") == expected


def test_a_file_that_grows_beyond_what_is_written_past_the_mount(pair: Pair) -> None:
    piece = os.urandom(MIB)
    with (pair.here / "file").open("wb", buffering=0) as file:
        assert past(pair, "file")
        for number in range(66):
            file.write(number.to_bytes(4) + piece[4:])
    with (pair.here / "file").open("r+b", buffering=0) as file:
        file.seek(65 * MIB)
        file.write(b"other")
    with (pair.there / "file").open("rb", buffering=0) as file:
        for number in range(65):
            assert file.read(MIB) == number.to_bytes(4) + piece[4:]
        assert file.read() == b"other" + piece[5:]


# Readers of older versions


def test_one_version_through_all_handles_and_maps(pair: Pair) -> None:
    versions = [os.urandom(BIG), os.urandom(BIG + 100), os.urandom(MIB)]
    (pair.here / "file").write_bytes(versions[0])
    early = os.open(pair.here / "file", os.O_RDONLY)
    mapped = mmap.mmap(early, BIG, prot=mmap.PROT_READ)
    assert os.pread(early, BIG, 0) == mapped[:] == versions[0]
    (pair.there / "file").write_bytes(versions[1])
    late = os.open(pair.here / "file", os.O_RDONLY)
    with mmap.mmap(late, BIG + 100, prot=mmap.PROT_READ) as mapped_late:
        assert os.pread(late, 2 * BIG, 0) == os.pread(early, 2 * BIG, 0) == mapped_late[:] == versions[1]
    assert mapped[:] == versions[1][:BIG], "a map of the old version is one of the new"
    (pair.there / "file").write_bytes(versions[2])
    with (pair.here / "file").open("r+b") as both:
        assert both.read() == versions[2]
        with mmap.mmap(both.fileno(), MIB) as mapped_both:
            mapped_both[:4] = b"here"
        assert os.pread(early, BIG, 0) == os.pread(late, BIG, 0) == b"here" + versions[2][4:]
    assert mapped[:MIB] == b"here" + versions[2][4:] == reads(pair.there / "file")
    os.close(late)
    os.close(early)
    (pair.there / "file").write_bytes(versions[0])
    assert reads(pair.here / "file") == versions[0] == mapped[:], "a map keeps the file open"
    mapped.close()


def test_what_was_read_in_part_is_served_by_the_kernel_the_next_time(pair: Pair) -> None:
    content = os.urandom(12 * MIB)
    path = pair.here / "file"
    (pair.there / "file").write_bytes(content)
    with path.open("rb", buffering=0) as file:
        assert file.read(MIB) == content[:MIB]
        assert lacking(pair.one, path) > 0
    wait_until(lambda: lacking(pair.one, path) == 0)
    with path.open("rb", buffering=0) as served:
        worker = pair.one.record().worker_pid
        os.kill(worker, signal.SIGSTOP)
        told: list[bytes] = []
        reader = threading.Thread(target=lambda: told.append(os.pread(served.fileno(), 12 * MIB, 0)))
        reader.start()
        reader.join(ALONE_SECONDS)
        is_alone = not reader.is_alive()
        os.kill(worker, signal.SIGCONT)
        reader.join()
        assert is_alone, "nobody but the kernel reads it"
        assert told == [content]


def lacking(mount: RealMount, path: Path) -> int:
    """How many chunks the local copy lacks."""
    where = ask(mount.record().control, Request("where", path.stat().st_ino)).where
    assert where is not None
    return where.local_lacking


def test_who_waits_for_a_file_to_grow_sees_it(pair: Pair) -> None:
    data = os.urandom(BIG)
    (pair.here / "file").write_bytes(data)
    with (pair.here / "file").open("rb", buffering=0) as reader:
        assert reader.read(2 * BIG) == data
        with (pair.there / "file").open("ab") as file:
            file.write(b"more")
        wait_until(lambda: os.fstat(reader.fileno()).st_size == BIG + 4)
        assert reader.read() == b"more"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_who_goes_around_the_pages_beside_a_reader(pair: Pair, flags: int) -> None:
    data = os.urandom(BIG)
    (pair.here / "file").write_bytes(data)
    with (pair.here / "file").open("rb") as reader, mmap.mmap(-1, 8192) as aligned:
        file = os.open(pair.here / "file", flags | os.O_DIRECT)
        assert os.preadv(file, [aligned], 0) == 8192
        assert aligned[:] == data[:8192]
        if flags == os.O_RDWR:
            aligned[:4] = b"here"
            assert os.pwrite(file, aligned, 0) == 8192
            with mmap.mmap(file, BIG) as mapped:
                mapped[4:8] = b"past"
            data = b"herepast" + data[8:]
        assert reader.read() == data
        os.close(file)
    assert reads(pair.there / "file") == data


# Maps


@pytest.mark.parametrize("is_read", [False, True], ids=["", "read"])
def test_what_is_written_through_a_map_outlives_its_descriptor(
    pair: Pair, program: Program, is_read: bool
) -> None:
    data = os.urandom(BIG)
    (pair.here / "file").write_bytes(data)
    reader = os.open(pair.here / "file", os.O_RDONLY) if is_read else -1
    program.do(f"f := os.open({str(pair.here / 'file')!r}, os.O_RDWR)")
    program.do(f"m := mmap.mmap(f, {BIG})")
    program.do("m.__setitem__(slice(0, 5), b'first')")
    program.do("os.close(f)")
    assert reads(pair.there / "file") == b"first" + data[5:]
    if is_read:
        assert past(pair, "file")
    program.do("m.__setitem__(slice(2000000, 2000006), b'second')")
    if is_read:
        assert os.pread(reader, 6, 2000000) == b"second"
        os.close(reader)
    assert lock_of(pair.one, f"{pair.here.name}/file") is not None
    program.do("m.close()")
    with (pair.there / "file").open("r+b", buffering=0) as file:  # waits until the lock is given back
        expected = b"first" + data[5:2000000] + b"second" + data[2000006:]
        assert file.read() == expected
        file.seek(0)
        file.write(b"there")
    assert reads(pair.here / "file") == b"there" + expected[5:]


def test_a_program_that_ends_leaves_what_it_has_mapped(pair: Pair) -> None:
    data = os.urandom(BIG)
    (pair.here / "file").write_bytes(data)
    with (pair.here / "file").open("rb") as reader:
        with Program() as program:
            program.do(f"f := os.open({str(pair.here / 'file')!r}, os.O_RDWR)")
            program.do(f"m := mmap.mmap(f, {BIG})")
            program.do("os.close(f)")
            program.do("m.__setitem__(slice(0, 5), b'first')")
        reader.close()
        began = time.monotonic()
        wait_until(lambda: reads(pair.there / "file") == b"first" + data[5:])
        assert time.monotonic() - began < MAP_GONE_SECONDS


def test_the_lock_goes_back_though_a_reader_stays(pair: Pair) -> None:
    data = os.urandom(BIG)
    (pair.here / "file").write_bytes(data)
    with (pair.here / "file").open("rb"):
        with (pair.here / "file").open("r+b") as writer:
            writer.write(b"here")
        assert reads(pair.there / "file") == b"here" + data[4:], "committed at once"
        began = time.monotonic()
        (pair.there / "file").write_bytes(b"there")
        assert time.monotonic() - began < MAP_GONE_SECONDS
    assert reads(pair.here / "file") == b"there"


def test_a_file_that_appends_and_is_mapped_and_then_read(pair: Pair) -> None:
    data = os.urandom(BIG)
    (pair.here / "file").write_bytes(data)
    both = os.open(pair.here / "file", os.O_RDWR | os.O_APPEND)
    mapped = mmap.mmap(both, BIG)
    mapped[:5] = b"first"
    assert reads(pair.here / "file") == b"first" + data[5:]
    mapped.close()
    os.write(both, b"last")
    assert reads(pair.here / "file") == b"first" + data[5:] + b"last"
    os.close(both)
    assert reads(pair.there / "file") == b"first" + data[5:] + b"last"


# What goes wrong


def test_a_killed_mount_leaves_what_was_written_past_it(
    pair: Pair, shared_realm: RealRealm, user: str
) -> None:
    acknowledged, later = os.urandom(BIG), os.urandom(BIG)
    with RealMount(shared_realm, "passing-victim", user, binding="native") as victim:
        place = victim.path / pair.here.name
        with Program() as program:
            for name in ("closed", "open", "new"):
                program.do(f"{name} := os.open({str(place / name)!r}, os.O_WRONLY | os.O_CREAT)")
                program.do(f"os.write({name}, {acknowledged!r})")
                program.do(f"os.fsync({name})")
            program.do("os.close(closed)")
            assert goes_past(victim, place / "open")
            program.do(f"os.pwrite(open, {later!r}, {BIG})")
            victim.kill()
        victim.expect_log(r"content that was never committed is kept as 'open \(conflict ")
        victim.mount()
        for name in ("closed", "open", "new"):
            assert reads(pair.here / name) == reads(place / name) == acknowledged
        [copy] = conflict_copies(pair.here / "open")
        assert reads(copy) == acknowledged + later
        assert len(list(place.iterdir())) == 4


def test_who_has_lost_his_lock_is_told_and_keeps_his_content(pair: Pair, program: Program) -> None:
    pair.one.expect_log(r"somebody else has written meanwhile; this content is in ")
    data = os.urandom(BIG)
    program.do(f"f := os.open({str(pair.here / 'file')!r}, os.O_WRONLY | os.O_CREAT)")
    program.do(f"os.write(f, {data!r})")
    program.do("os.fsync(f)")
    assert past(pair, "file")
    program.do("os.pwrite(f, b'loser', 0)")
    break_lock(pair.one, f"{pair.here.name}/file")
    (pair.there / "file").write_bytes(b"winner")
    program.do("os.pwrite(f, b'loser', 5)")
    for what in ("os.fsync(f)", "os.close(f)"):
        with pytest.raises(OSError, match="tale") as caught:
            program.do(what)
        assert caught.value.errno == errno.ESTALE
    for folder in (pair.here, pair.there):
        assert reads(folder / "file") == b"winner"
        [copy] = conflict_copies(folder / "file")
        assert reads(copy) == b"loserloser" + data[10:]


@pytest.fixture
def small_disk(shared_realm: RealRealm) -> Iterator[Path]:
    """A cache folder on a little disk."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    disk = shared_realm.folder / "passing-full-cache"
    disk.mkdir(mode=0o700)
    options = f"size={DISK_BYTES},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, disk_name(), disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_told_to_who_writes(
    pair: Pair, shared_realm: RealRealm, user: str, small_disk: Path
) -> None:
    piece = os.urandom(MIB)
    ballast = small_disk / "of somebody else"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    with RealMount(shared_realm, "passing-full", user, binding="native") as mount:
        assert mount.cache == small_disk
        place = mount.path / pair.here.name
        with (place / "file").open("wb", buffering=0) as file:
            file.write(piece)
            os.fsync(file.fileno())
            assert goes_past(mount, place / "file")
            with pytest.raises(OSError, match="space") as caught:
                for _ in range(DISK_BYTES // MIB):
                    file.write(piece)
            assert caught.value.errno == errno.ENOSPC
            assert reads(pair.there / "file") == piece
            ballast.unlink()
            os.ftruncate(file.fileno(), 3 * MIB)
            os.fsync(file.fileno())
            assert reads(pair.there / "file") == 3 * piece
        assert reads(place / "file") == 3 * piece


def test_umount_leaves_nothing(pair: Pair, shared_realm: RealRealm, user: str) -> None:
    data = os.urandom(BIG)
    with RealMount(shared_realm, "passing-ended", user, binding="native") as mount:
        place = mount.path / pair.here.name
        (place / "mapped").write_bytes(data)
        with Program() as program:
            program.do(f"r := os.open({str(place / 'mapped')!r}, os.O_RDONLY)")
            program.do(f"f := os.open({str(place / 'mapped')!r}, os.O_RDWR)")
            program.do(f"m := mmap.mmap(f, {BIG})")
            program.do("os.close(f)")
            program.do("m.__setitem__(slice(0, 5), b'first')")
            program.do(f"w := os.open({str(place / 'written')!r}, os.O_WRONLY | os.O_CREAT)")
            program.do(f"os.write(w, {data!r})")
            assert mount.realm.run("umount", str(mount.path), user=user, status=6)
            pid = mount.record().pid
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not Path(f"/proc/{pid}").exists())
            assert reads(pair.there / "mapped") == b"first" + data[5:]
            assert reads(pair.there / "written") == data
        assert str(mount.path) not in mountpoints()
        mount.mount()
        assert unsaved(mount) == 0
        assert reads(place / "mapped") == b"first" + data[5:]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_comes_to_a_programs_mind(pair: Pair, seed: int) -> None:
    exerciser = Exerciser(seed, (pair.here, pair.there), "file")
    try:
        exerciser.run(8)
    except BaseException:
        print("\n".join(exerciser.said))
        raise
