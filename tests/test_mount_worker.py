"""The worker of a mount is killed, hangs, or is replaced: programs see a pause, and nothing else."""

import errno
import json
import logging
import mmap
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.registry import mountpoints
from mount.slate import LAYOUT
from tests.support.mounts import RealMount, Writer, fresh_mount
from tests.support.realm import CODE, RealRealm
from tests.support.times import wait_until
from wire.version import VERSION

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

DIED = r"the worker \d+ died \(status -9\)"
HANG_SECONDS = 3


@pytest.fixture(scope="module")
def own_realm(shared_realm: RealRealm) -> RealRealm:
    """The realm, with a user of this module's."""
    shared_realm.join("wanda")
    return shared_realm


@pytest.fixture
def mount(own_realm: RealRealm) -> Iterator[RealMount]:
    """A mount whose worker may be killed."""
    with fresh_mount(own_realm, "wanda", binding="native") as mount:
        mount.expect_log(DIED)
        yield mount


@pytest.fixture
def folder(mount: RealMount, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own: the realm is shared."""
    place = mount.path / f"worker-{request.node.name}"
    place.mkdir()
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of files, as they are anywhere."""
    folder = tmp_path_factory.mktemp("source")
    for module in (json, logging):
        place = Path(module.__path__[0])
        shutil.copytree(place, folder / place.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "big").write_bytes(os.urandom(5 * 2**20))
    (folder / "link").symlink_to("json/decoder.py")
    (folder / "json" / "tool.py").chmod(0o750)
    return folder


def kill_worker(mount: RealMount) -> None:
    """SIGKILL, and returns when the next one has begun."""
    pid = mount.record().worker_pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mount.record().worker_pid != pid)


def picture(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below: mode, time, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = status.st_mode, status.st_mtime_ns, content
    return found


def test_cp_goes_on_when_the_worker_is_killed_again_and_again(
    own_realm: RealRealm, mount: RealMount, folder: Path, source: Path
) -> None:
    target = folder / "copy"
    cp = subprocess.Popen(["cp", "-a", str(source), str(target)], stderr=subprocess.PIPE, text=True)
    kills = 0
    while cp.poll() is None and kills < 4:
        kill_worker(mount)
        kills += 1
    _, said = cp.communicate(timeout=60)
    assert (cp.returncode, said) == (0, "")
    assert kills >= 2
    with fresh_mount(own_realm, "wanda") as other:
        assert picture(other.path / folder.name / "copy") == picture(source)


PROGRAM = """
import os, sys
folder = sys.argv[1]
os.chdir(folder)
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for n in range(int(sys.argv[2])):
    os.mkdir(f"dir{n}")
    descriptor = os.open(f"dir{n}/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, b"%d" % n)
    os.close(descriptor)
    os.link(f"dir{n}/file", f"dir{n}/link")
    os.setxattr(f"dir{n}/file", "user.n", b"%d" % n, os.XATTR_CREATE)
    os.rename(f"dir{n}/file", f"kept{n}")
    os.unlink(f"dir{n}/link")
    os.symlink(f"kept{n}", f"dir{n}/symlink")
    os.unlink(f"dir{n}/symlink")
    os.rmdir(f"dir{n}")
    os.write(log, b"%d\\n" % n)
    print(n, flush=True)
os.close(log)
"""


def test_nothing_is_done_twice_and_nothing_is_lost(
    own_realm: RealRealm, mount: RealMount, folder: Path
) -> None:
    """The program ends at the first call that is told something else than on a disk."""
    count = 100
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kills = 0
    assert program.stdout is not None
    assert program.stdout.readline() == "0\n"
    while program.poll() is None and kills < 5:
        kill_worker(mount)
        kills += 1
        time.sleep(0.01 * kills)  # somewhere else in the loop each time
    said, complaint = program.communicate(timeout=60)
    assert (program.returncode, complaint) == (0, "")
    assert kills >= 3
    assert said == "".join(f"{n}\n" for n in range(1, count))
    with fresh_mount(own_realm, "wanda") as other:
        made = other.path / folder.name
        assert (made / "log").read_text() == "".join(f"{n}\n" for n in range(count))
        assert sorted(os.listdir(made)) == sorted(["log", *(f"kept{n}" for n in range(count))])
        for n in range(count):
            assert (made / f"kept{n}").read_text() == str(n)


def test_git_does_not_notice(mount: RealMount, folder: Path, source: Path) -> None:
    work = folder / "work"
    shutil.copytree(source / "json", work)

    def git(*words: str) -> str:
        command = ["git", "-C", str(work), "-c", "user.name=w", "-c", "user.email=w@w", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    for _ in range(3):
        os.kill(mount.record().worker_pid, signal.SIGKILL)
        assert git("status", "--porcelain") == ""
    git("fsck", "--strict")


def test_an_open_file_goes_on_and_its_lock_is_held(
    own_realm: RealRealm, mount: RealMount, folder: Path
) -> None:
    path = folder / "file"
    path.write_text("before, and more")
    writer = Writer(path, "unsaved")
    with fresh_mount(own_realm, "wanda", "--lock-wait", "0") as other:
        theirs = other.path / folder.name / "file"
        kill_worker(mount)
        with pytest.raises(OSError) as raised:
            os.open(theirs, os.O_WRONLY)
        assert raised.value.errno == errno.EBUSY
        assert theirs.read_text() == "before, and more"
        kill_worker(mount)
        assert writer.close() == 0
        assert theirs.read_text() == "unsaved and more"
        wait_until(lambda: can_write(theirs))


def can_write(path: Path) -> bool:
    """Whether it can be opened for writing now."""
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True


def test_what_the_kernel_serves_itself_goes_on(own_realm: RealRealm, mount: RealMount, folder: Path) -> None:
    """Files with a backing file: one read, one written, one mapped by who has closed it (see
    mount.bindings.native.passthrough)."""
    if not mount.record().passthrough:
        pytest.skip("the kernel serves no files itself here")
    content = os.urandom(2 * 2**20)
    (folder / "read").write_bytes(content)
    (folder / "mapped").write_bytes(content)
    with (
        (folder / "read").open("rb", buffering=0) as reader,
        (folder / "written").open("wb", buffering=0) as writer,
        (folder / "mapped").open("rb") as keeps_it_backed,
        (folder / "mapped").open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapped,
    ):
        file.close()
        writer.write(content)
        kill_worker(mount)
        assert reader.read(100) == content[:100]
        writer.write(b"the end")
        mapped[:3] = b"abc"
        assert (folder / "read").read_bytes() == content, "one more open finds the file backed already"
        kill_worker(mount)
        assert writer.write(b".") == 1
        assert keeps_it_backed.read() == b"abc" + content[3:]
    with fresh_mount(own_realm, "wanda") as other:
        place = other.path / folder.name
        assert (place / "written").read_bytes() == content + b"the end."
        wait_until(lambda: (place / "mapped").read_bytes() == b"abc" + content[3:])
        with (place / "mapped").open("r+b") as file:
            file.write(b"the lock is free")
    with (folder / "read").open("r+b") as file:
        file.write(b"and pages are in order")
    assert (folder / "read").read_bytes().startswith(b"and pages")


def test_what_is_read_again_and_again_goes_on(mount: RealMount, folder: Path) -> None:
    """Of files that are closed, the next worker has none open, whatever was kept open for the next time."""
    files = [folder / f"file-{number}" for number in range(8)]
    for file in files:
        file.write_text(file.name)
    for _ in range(2):  # one worker after the other
        for _ in range(4):
            assert [file.read_text() for file in files] == [file.name for file in files]
        with files[0].open() as opened:
            kill_worker(mount)
            assert opened.read() == files[0].name
            assert [file.read_text() for file in files] == [file.name for file in files]
    found = re.findall(r"(\d+) open files of the worker before are open again", mount.log())
    assert found == ["1", "1"]
    for file in files:
        file.write_text("new")
        assert file.read_text() == "new"


def test_a_directory_that_is_being_read_goes_on(mount: RealMount, folder: Path) -> None:
    for n in range(300):
        (folder / f"{n:03}{'x' * 200}").touch()
    with os.scandir(folder) as entries:
        names = [next(entries).name]
        kill_worker(mount)
        names += [entry.name for entry in entries]
    assert sorted(names) == sorted(f"{n:03}{'x' * 200}" for n in range(300))


def test_a_worker_that_hangs_leaves_its_stacks_and_is_replaced(own_realm: RealRealm) -> None:
    with fresh_mount(own_realm, "wanda", "--hang", str(HANG_SECONDS), binding="native") as mount:
        mount.expect_log("has not answered for")
        path = mount.path / "worker-that-hangs"
        path.write_text("content")
        pid = mount.record().worker_pid
        os.kill(pid, signal.SIGSTOP)
        assert path.read_text() == "content"
        wait_until(lambda: mount.record().worker_pid != pid)
        assert "most recent call first" in mount.log()


def test_status_names_the_worker(own_realm: RealRealm, mount: RealMount) -> None:
    said = json.loads(own_realm.run("status", "--json", user="wanda").stdout)
    record = mount.record()
    (told,) = [found for found in said["mounts"] if found["mountpoint"] == str(mount.path)]
    assert (told["pid"], told["worker_pid"]) == (record.pid, record.worker_pid)
    assert record.worker_pid != record.pid


def test_without_its_keeper_a_mount_is_dead(own_realm: RealRealm) -> None:
    mount = RealMount(own_realm, "without-keeper", "wanda", binding="native")
    worker = os.pidfd_open(mount.record().worker_pid)
    mount.kill()
    assert select.select([worker], [], [], 0)[0], "the worker has ended too"
    os.close(worker)
    with pytest.raises(OSError) as raised:
        os.listdir(mount.path)
    assert raised.value.errno == errno.ENOTCONN
    mount.umount()


def test_unmounting_right_after_the_worker_died(own_realm: RealRealm) -> None:
    with fresh_mount(own_realm, "wanda", binding="native") as mount:
        mount.expect_log(DIED)
        os.kill(mount.record().worker_pid, signal.SIGKILL)
        mount.umount()
        assert str(mount.path) not in mountpoints()


def test_who_waits_for_a_lock_waits_on(own_realm: RealRealm, mount: RealMount, folder: Path) -> None:
    with fresh_mount(own_realm, "wanda") as other:
        writer = Writer(other.path / folder.name / "file", "theirs")
        opener = waiting_opener(own_realm, folder / "file")
        kill_worker(mount)
        assert writer.close() == 0
        assert opener.communicate(timeout=60) == ("done\n", "")
    assert (folder / "file").read_text() == "mine"


def waiting_opener(realm: RealRealm, path: Path) -> subprocess.Popen[str]:
    """A program that waits to write a file, which another mount has open."""
    script = "import sys; open(sys.argv[1], 'w').write('mine'); print('done')"
    opener = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(lock["queue"] for lock in locks(realm)))
    return opener


def locks(realm: RealRealm) -> list[dict[str, list[object]]]:
    """All locks, with those who wait."""
    told: list[dict[str, list[object]]] = json.loads(realm.run("locks", "--json", user="wanda").stdout)
    return told


# Other versions


def another_version(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """The code of DFS with some words replaced: (file: (old, new))."""
    for package in ("dfs", "mount", "clients", "cache", "servers", "wire"):
        shutil.copytree(CODE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in {"wire/version.py": (VERSION, "9.9.9"), **changes}.items():
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    return folder


def mount_with(code: Path, mount: RealMount) -> subprocess.CompletedProcess[str]:
    """``dfs mount`` of that code, onto the mount."""
    environment = mount.realm.environment(mount.user, PYTHONPATH=str(code))
    return subprocess.run(
        mount.realm.command("mount", str(mount.path)),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=code,
        timeout=100,
    )


def test_another_version_takes_a_mount_over(mount: RealMount, folder: Path, tmp_path: Path) -> None:
    writer = Writer(folder / "file", "unsaved")
    before = mount.record()
    told = mount_with(another_version(tmp_path / "code", {}), mount)
    assert (told.returncode, told.stderr) == (0, "")
    after = mount.record()
    assert (after.pid, after.started, after.version) == (before.pid, before.started, "9.9.9")
    assert after.worker_pid != before.worker_pid
    assert writer.close() == 0
    assert (folder / "file").read_text() == "unsaved"


def test_a_version_that_cannot_take_it_over_leaves_it_as_it_is(
    mount: RealMount, folder: Path, tmp_path: Path
) -> None:
    mount.expect_log("is not ready; the old one goes on")
    mount.expect_log(r"the worker \d+ died \(status")
    writer = Writer(folder / "file", "unsaved")
    told = mount_with(
        another_version(
            tmp_path / "code", {"mount/slate.py": (f"LAYOUT = {LAYOUT}", f"LAYOUT = {LAYOUT + 1}")}
        ),
        mount,
    )
    assert told.returncode != 0
    assert "could not take the mount over" in told.stderr
    assert mount.record().version == VERSION
    assert writer.close() == 0
    assert (folder / "file").read_text() == "unsaved"


OLD_KERNEL = {
    "mount/bindings/native/notifications.py": ("OUT_HEADER.pack(OUT_HEADER.size, Notify.RESEND, 0)", "b'no'"),
}
"""What is written to the kernel is no notification: as one before Linux 6.9 takes RESEND."""


def test_a_kernel_that_repeats_no_calls(
    own_realm: RealRealm, mount: RealMount, folder: Path, tmp_path: Path
) -> None:
    """What was under way fails, and all else goes on."""
    assert mount_with(another_version(tmp_path / "code", OLD_KERNEL), mount).returncode == 0
    path = folder / "kept"
    writer = Writer(path, "kept")
    with fresh_mount(own_realm, "wanda") as other:
        theirs = Writer(other.path / folder.name / "file", "theirs")
        opener = waiting_opener(own_realm, folder / "file")
        kill_worker(mount)
        said, complaint = opener.communicate(timeout=20)
        assert said == ""
        assert "Input/output error" in complaint
        assert theirs.close() == 0
        assert (folder / "file").read_text() == "theirs"
    assert writer.close() == 0
    assert path.read_text() == "kept"


def test_the_same_version_is_told_that_something_is_mounted(own_realm: RealRealm, mount: RealMount) -> None:
    told = own_realm.run("mount", str(mount.path), user="wanda", status=6)
    assert "mounted there already" in told.stderr
