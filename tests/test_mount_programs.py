"""Programs as they are, on two mounts: what one of them leaves, the other mount shows."""

import ctypes
import errno
import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from dfs.logins import own_services
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm
from tests.support.times import wait_until
from wire.messages.directory import OpenWrite, SetAttr, Unlink

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

NOREPLACE, EXCHANGE = 1, 2
"""<linux/fs.h>."""

AT_FDCWD = -100


@pytest.fixture(scope="module")
def mounts(shared_realm: RealRealm) -> Iterator[tuple[RealMount, RealMount]]:
    """Two mounts of ``paula``."""
    shared_realm.join("paula")
    with (
        RealMount(shared_realm, "programs-1", "paula") as one,
        RealMount(shared_realm, "programs-2", "paula") as two,
    ):
        yield one, two


@pytest.fixture
def places(mounts: tuple[RealMount, RealMount], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A fresh directory, as both mounts show it."""
    name = request.node.name
    (mounts[0].path / name).mkdir()
    return mounts[0].path / name, mounts[1].path / name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of this machine, with modes, times, links and an empty directory."""
    folder = tmp_path / "source"
    (folder / "below" / "empty").mkdir(parents=True)
    for number in range(20):
        file = folder / "below" / f"file {number}"
        file.write_bytes(os.urandom(number * 700))
        file.chmod(0o600 | number)
        os.utime(file, ns=(10**18 + number, 10**18 + 7 * number))
    (folder / "link").symlink_to("below/file 3")
    (folder / "dangling").symlink_to("nowhere")
    os.link(folder / "below" / "file 1", folder / "hard")
    (folder / "below").chmod(0o2750)
    for number, name in enumerate(("link", "dangling", "below/empty")):
        os.utime(folder / name, ns=(10**18, 10**18 + number), follow_symlinks=False)
    os.utime(folder / "below", ns=(5 * 10**17, 6 * 10**17))
    return folder


def run(words: Sequence[str | Path], folder: Path) -> str:
    """Its output; asserts that it said that all went well."""
    home = {"HOME": str(folder.parent), "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=os.environ | home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def need(program: str) -> None:
    """Skips the test on a machine without it."""
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")


def described(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Of everything below: type and mode, time, size, content or target. (Directories have any size.)"""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        else:
            content = b"" if path.is_dir() else path.read_bytes()
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, size, content)
    return found


def test_vim_saves(places: tuple[Path, Path]) -> None:
    need("vim")
    one, two = places
    (one / "text").write_text("first line\n")
    run(["vim", "-es", "-u", "NONE", "-c", "normal oadded by vim", "-c", "wq", "text"], two)
    assert (one / "text").read_text() == "first line\nadded by vim\n"
    run(
        [
            "vim",
            "-es",
            "-u",
            "NONE",
            "-c",
            "set backup backupcopy=no backupskip=",
            "-c",
            "%s/first/FIRST/",
            "-c",
            "wq",
            "text",
        ],
        one,
    )
    assert (two / "text").read_text() == "FIRST line\nadded by vim\n"
    assert sorted(os.listdir(two)) == ["text", "text~"]


def test_the_shell_and_sed(places: tuple[Path, Path]) -> None:
    one, two = places
    run(
        ["sh", "-ec", "for i in 1 2 3; do echo line $i >> log; done; sed -i s/line/LINE/ log; wc -l < log"],
        one,
    )
    assert (two / "log").read_text() == "LINE 1\nLINE 2\nLINE 3\n"
    run(["sh", "-ec", "echo line 4 >> log; sort -r -o log log; truncate -s 7 log; mv log moved"], two)
    assert (one / "moved").read_text() == "line 4\n"
    assert os.listdir(one) == ["moved"]


def test_cp_keeps_everything(places: tuple[Path, Path], source: Path) -> None:
    one, two = places
    run(["cp", "-a", source, one / "copy"], one)
    run(["diff", "-r", "--no-dereference", source, two / "copy"], two)
    assert described(two / "copy") == described(source)
    assert (two / "copy" / "hard").stat().st_ino == (two / "copy" / "below" / "file 1").stat().st_ino
    run(["rm", "-r", two / "copy"], two)
    wait_until(lambda: os.listdir(one) == [], 5)


def test_tar_packs_and_unpacks(places: tuple[Path, Path], source: Path) -> None:
    one, two = places
    run(["tar", "-cf", one / "all.tar", "-C", source, "."], one)
    (two / "unpacked").mkdir()
    run(["tar", "-xpf", "../all.tar"], two / "unpacked")
    (two / "unpacked").chmod(stat.S_IMODE(source.stat().st_mode))
    os.utime(two / "unpacked", ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    in_seconds = {
        name: (mode, 0 if name == "." else time_ns // 10**9, size, content)
        for name, (mode, time_ns, size, content) in described(source).items()
    }
    assert {
        name: (mode, 0 if name == "." else time_ns // 10**9, size, content)
        for name, (mode, time_ns, size, content) in described(one / "unpacked").items()
    } == in_seconds


def test_rsync_brings_what_changed(places: tuple[Path, Path], source: Path) -> None:
    need("rsync")
    one, two = places
    for path in [*source.rglob("*"), source]:  # rsync leaves times alone that differ by less than a second
        os.utime(path, ns=(6 * 10**17, 6 * 10**17), follow_symlinks=False)
    run(["rsync", "-aH", f"{source}/", one / "copy"], one)
    assert sorted(described(two / "copy").items() ^ described(source).items()) == []
    (source / "below" / "file 5").write_text("changed")
    (source / "below" / "file 6").unlink()
    os.utime(source / "below", ns=(7 * 10**17, 8 * 10**17))
    said = run(["rsync", "-aH", "--delete", "--itemize-changes", f"{source}/", two / "copy"], two)
    assert sorted(line.split(maxsplit=1)[1] for line in said.splitlines() if "file" in line) == [
        "below/file 5",
        "below/file 6",
    ]
    assert sorted(described(one / "copy").items() ^ described(source).items()) == []


def test_git_commits_and_finds_nothing_wrong(places: tuple[Path, Path], source: Path) -> None:
    need("git")
    one, two = places
    who = ["-c", "user.name=paula", "-c", "user.email=paula@example.org", "-c", "safe.directory=*"]
    run(["cp", "-a", source / "below", one / "work"], one)
    run(["git", *who, "init", "-q", "-b", "main", "work"], one)
    for number, place in enumerate((one, two)):
        (place / "work" / "changes").write_text(f"change {number}\n")
        run(["git", *who, "add", "-A"], place / "work")
        run(["git", *who, "commit", "-q", "-m", f"commit {number}"], place / "work")
    for place in (one, two):
        assert run(["git", *who, "status", "--porcelain"], place / "work") == ""
        assert run(["git", *who, "log", "--format=%s"], place / "work").split() == [
            "commit",
            "1",
            "commit",
            "0",
        ]
    run(["git", *who, "fsck", "--strict"], two / "work")
    run(["git", *who, "clone", "-q", "work", "clone"], one)
    assert (two / "clone" / "changes").read_text() == "change 1\n"


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite_in_one_mount(places: tuple[Path, Path], journal: str) -> None:
    one, two = places
    with closing(sqlite3.connect(one / "base.db")) as base:
        base.execute(f"pragma journal_mode={journal}")
        base.execute("create table numbers (number integer primary key, text text)")
        for number in range(5):
            with base:
                base.executemany(
                    "insert into numbers values (?, ?)", ((number * 100 + n, "x" * n) for n in range(100))
                )
        with base:
            base.execute("delete from numbers where number % 3 = 0")
        assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
    with closing(sqlite3.connect(two / "base.db")) as base:
        assert base.execute("select count(*), sum(length(text)) from numbers").fetchone() == (333, 16467)
        with base:
            base.execute("insert into numbers values (-1, 'from the other mount')")
    # A name that the other mount has removed may be believed for a moment longer.
    wait_until(lambda: not (two / "base.db-journal").exists() and not (one / "base.db-journal").exists(), 5)
    with closing(sqlite3.connect(one / "base.db")) as base:
        assert base.execute("select text from numbers where number = -1").fetchone() == (
            "from the other mount",
        )
        assert base.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_a_memory_map_is_written_at_close(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "mapped").write_bytes(bytes(3 * mmap.PAGESIZE + 10))
    with (one / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[mmap.PAGESIZE : mmap.PAGESIZE + 5] = b"early"
        memory.flush()
        memory[-5:] = b"later"
    expected = bytes(mmap.PAGESIZE) + b"early".ljust(2 * mmap.PAGESIZE, b"\0") + b"\0\0\0\0\0later"
    wait_until(lambda: (two / "mapped").read_bytes() == expected, 5)
    with (two / "mapped").open("rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory[:] == expected


def test_what_a_map_changes_after_close_is_committed_when_it_goes(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "mapped").write_bytes(bytes(100))
    file = (one / "mapped").open("r+b")
    with mmap.mmap(file.fileno(), 0) as memory:
        file.close()
        memory[:5] = b"after"
    wait_until(lambda: (two / "mapped").read_bytes() == b"after".ljust(100, b"\0"), 5)


def test_truncating(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("0123456789")
    os.truncate(two / "file", 4)
    assert (one / "file").read_text() == "0123"
    os.truncate(one / "file", 6)
    assert (two / "file").read_bytes() == b"0123\0\0"
    with (two / "file").open("r+b") as file:
        file.truncate(2)
        file.seek(4)
        file.write(b"x")
    assert (one / "file").read_bytes() == b"01\0\0x"


def test_readers_never_see_the_empty_moment(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("before")
    with (two / "file").open() as early:
        descriptor = os.open(one / "file", os.O_WRONLY | os.O_TRUNC)
        try:
            assert early.read() == "before"
            assert (two / "file").read_text() == "before"
            assert (one / "file").read_text() == "", "the mount that truncates shows its own content"
            os.write(descriptor, b"after it")
            assert (two / "file").read_text() == "before"
        finally:
            os.close(descriptor)
        assert (two / "file").read_text() == "after it"


def test_truncating_while_opening_for_reading(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("content")
    os.close(os.open(one / "file", os.O_RDONLY | os.O_TRUNC))
    assert (two / "file").read_text() == ""
    (two / "file").write_text("the lock is free")
    assert (one / "file").read_text() == "the lock is free"


def renameat2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_renaming_with_flags(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "a").write_text("a")
    (one / "b").write_text("b")
    with pytest.raises(FileExistsError):
        renameat2(one / "a", one / "b", NOREPLACE)
    renameat2(one / "a", one / "c", NOREPLACE)
    renameat2(two / "b", two / "c", EXCHANGE)
    for place in (one, two):
        assert ((place / "b").read_text(), (place / "c").read_text()) == ("a", "b")
    with pytest.raises(FileNotFoundError):
        renameat2(one / "b", one / "missing", EXCHANGE)
    assert sorted(os.listdir(two)) == ["b", "c"]


# Two users


@pytest.fixture(scope="module")
def quentin(shared_realm: RealRealm) -> Iterator[RealMount]:
    """The mount of another user of the realm."""
    shared_realm.join("quentin")
    with RealMount(shared_realm, "programs-quentin", "quentin") as mount:
        yield mount


@pytest.fixture
def theirs(quentin: RealMount, places: tuple[Path, Path]) -> Path:
    """The directory of the test, as the other user's mount shows it."""
    return quentin.path / places[0].name


def test_another_user_reads_and_writes_what_the_modes_allow(places: tuple[Path, Path], theirs: Path) -> None:
    one, two = places
    (one / "open").write_text("for all")
    (one / "open").chmod(0o666)
    (one / "readable").write_text("to be read")
    (one / "readable").chmod(0o644)
    (one / "secret").write_text("mine")
    (one / "secret").chmod(0o600)
    assert (theirs / "open").stat().st_uid != os.getuid(), "what belongs to another one is shown so"
    assert (theirs / "readable").read_text() == "to be read"
    with (theirs / "open").open("a") as file:
        file.write(", and written")
    assert (two / "open").read_text() == "for all, and written"
    for name, do in (("secret", "r"), ("secret", "r+"), ("readable", "r+"), ("new", "w")):
        with pytest.raises(PermissionError):
            (theirs / name).open(do)
    for attempt in (
        lambda: (theirs / "open").chmod(0o777),
        lambda: os.utime(theirs / "open", (1, 1)),
        lambda: os.truncate(theirs / "readable", 0),
        lambda: (theirs / "open").unlink(),
        lambda: (theirs / "open").rename(theirs / "mine"),
        lambda: (theirs / "directory").mkdir(),
        lambda: os.link(theirs / "open", theirs / "hard"),
    ):
        with pytest.raises(PermissionError):
            attempt()
    assert not os.access(theirs / "secret", os.R_OK)
    assert os.access(theirs / "readable", os.R_OK)
    assert sorted(os.listdir(two)) == ["open", "readable", "secret"]


def test_a_closed_directory_is_closed_with_everything_in_it(places: tuple[Path, Path], theirs: Path) -> None:
    one, _ = places
    (one / "closed").mkdir()
    (one / "closed" / "file").write_text("readable by its own mode")
    (one / "closed" / "file").chmod(0o666)
    assert (theirs / "closed" / "file").read_text() == "readable by its own mode"
    (one / "closed").chmod(0o700)
    for attempt in (
        lambda: (theirs / "closed" / "file").read_text(),
        lambda: (theirs / "closed" / "file").open("a"),
        lambda: os.listdir(theirs / "closed"),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_the_root_is_sticky(mounts: tuple[RealMount, RealMount], quentin: RealMount) -> None:
    mine, theirs = mounts[0].path / "mine-in-the-root", quentin.path / "mine-in-the-root"
    mine.write_text("everybody may make files here")
    mine.chmod(0o666)
    assert stat.S_IMODE(quentin.path.stat().st_mode) == 0o1777
    for attempt in (theirs.unlink, lambda: theirs.rename(quentin.path / "taken")):
        with pytest.raises(PermissionError):
            attempt()
    (quentin.path / "of-quentin").write_text("his own")
    (quentin.path / "of-quentin").unlink()
    mine.unlink()


def test_a_client_of_his_own_making_gets_no_further(
    shared_realm: RealRealm, places: tuple[Path, Path], theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = places
    (one / "closed").mkdir(mode=0o700)
    (one / "closed" / "inside").write_text("readable by its own mode")
    (one / "closed" / "inside").chmod(0o666)
    (one / "secret").write_text("mine")
    (one / "secret").chmod(0o600)
    closed, inside, secret = ((one / name).stat().st_ino for name in ("closed", "closed/inside", "secret"))
    monkeypatch.setenv("DFS_STATE", str(shared_realm.state("quentin")))
    with own_services(shared_realm.url, "quentin") as services:
        directory = services.directory
        assert directory.attrs([inside]) == [None]
        assert directory.paths([inside]) == [None]
        grant = services.lock.acquire([inside], 5.0).answers[0]
        assert grant.grant, "the lock server knows no permissions"
        for number, attempt in (
            (errno.EACCES, lambda: directory.manifest(secret)),
            (errno.EACCES, lambda: directory.manifest(inside)),
            (errno.EACCES, lambda: directory.mutate([OpenWrite(inside, grant.grant)])),
            (errno.EACCES, lambda: directory.list_page(closed)),
            (errno.EPERM, lambda: directory.mutate([SetAttr(secret, mode=0o100666)])),
            (errno.EACCES, lambda: directory.mutate([Unlink(closed, b"inside")])),
        ):
            with pytest.raises(PermissionError) as caught:
                attempt()
            assert caught.value.errno == number
    assert (one / "closed" / "inside").read_text() == "readable by its own mode"
    assert (one / "secret").read_text() == "mine"
