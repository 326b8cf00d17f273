"""POSIX ACLs through the kernel: set on one mount, enforced on another, kept by programs that copy."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.acls import ACCESS, DEFAULT, extended
from tests.support.mounts import RealMount
from tests.support.realm import RealRealm

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be everybody")

LOIS, MARK, CREW = 54101, 54102, 54200
"""Users and a group of this machine, as far as the kernel goes."""


def programs(*names: str) -> pytest.MarkDecorator:
    """For a test that needs them."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"there is no {', '.join(missing)}")


def run(folder: Path, *words: str, uid: int = 0, groups: Sequence[int] = ()) -> str:
    """What a program says that runs in ``folder``; it gets there whatever is above. Raises
    CalledProcessError."""
    number, others = (uid, list(groups)) if uid else (None, None)
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        user=number,
        group=number,
        extra_groups=others,
    )
    return done.stdout


def may(folder: Path, script: str, uid: int, *groups: int) -> bool:
    """Whether a script succeeds as this user."""
    try:
        run(folder, "sh", "-c", script, uid=uid, groups=groups)
    except subprocess.CalledProcessError as error:
        assert "ermission denied" in error.stderr or "not permitted" in error.stderr, error.stderr
        return False
    return True


def mode(path: Path) -> int:
    """The permissions that stat(2) tells."""
    return stat.S_IMODE(path.stat().st_mode)


# One mount for all users of a machine


@pytest.fixture(scope="module")
def trusted(shared_realm: RealRealm) -> Iterator[tuple[RealMount, RealMount]]:
    """Two machines' mounts."""
    shared_realm.sign_up("herbert")
    shared_realm.run("user", "herbert", "--trusted", user="admin")
    shared_realm.log_in("herbert")
    options = ("--trusted", "--allow-other")
    with (
        RealMount(shared_realm, "acl-machine-1", "herbert", *options) as one,
        RealMount(shared_realm, "acl-machine-2", "herbert", *options) as two,
    ):
        yield one, two


@pytest.fixture
def places(trusted: tuple[RealMount, RealMount], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A fresh directory, as both mounts show it."""
    name = request.node.name
    (trusted[0].path / name).mkdir()
    return trusted[0].path / name, trusted[1].path / name


@needs_root
def test_users_may_what_the_acl_says_on_every_machine(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "file").write_text("content")
    (one / "file").chmod(0o600)
    assert not may(two, "cat file", LOIS)
    os.setxattr(one / "file", ACCESS, extended(0o660, users=[(LOIS, 6), (MARK, 4)], groups=[(CREW, 4)]))
    assert mode(two / "file") == 0o660
    for folder in places:
        assert may(folder, "cat file && : >> file", LOIS)
        assert may(folder, "cat file", MARK)
        assert not may(folder, ": >> file", MARK)
        assert may(folder, "cat file", 54999, CREW)
        assert not may(folder, "cat file", 54999)
        assert not may(folder, "chmod 666 file", LOIS)


@needs_root
def test_a_change_elsewhere_counts_at_once(places: tuple[Path, Path]) -> None:
    one, two = places
    (one / "closed").mkdir(mode=0o700)
    (one / "closed" / "file").write_text("content")
    for _ in range(5):
        os.setxattr(one / "closed", ACCESS, extended(0o750, users=[(LOIS, 5)]))
        assert may(two, "cat closed/file && ls closed", LOIS)
        assert os.getxattr(two / "closed", ACCESS) == extended(0o750, users=[(LOIS, 5)])
        (one / "closed").chmod(0o700)
        assert not may(two, "cat closed/file", LOIS)
        assert not may(two, "ls closed", LOIS)
        assert os.getxattr(two / "closed", ACCESS) == extended(0o700, users=[(LOIS, 5)])
        os.removexattr(one / "closed", ACCESS)
        assert os.listxattr(two / "closed") == []


@needs_root
@pytest.mark.parametrize("umask", ["022", "077"])
def test_what_is_made_gets_the_default_acl_and_not_the_umask(places: tuple[Path, Path], umask: str) -> None:
    one, two = places
    value = extended(0o770, users=[(LOIS, 7)], group=5)
    os.setxattr(one, DEFAULT, value)
    run(one, "sh", "-c", f"umask {umask}; : > file; mkdir -p folder/inner; mkfifo fifo; ln -s file link")
    assert os.getxattr(two / "file", ACCESS) == extended(0o660, users=[(LOIS, 7)], group=5)
    assert os.getxattr(two / "fifo", ACCESS) == extended(0o660, users=[(LOIS, 7)], group=5)
    for folder in (two / "folder", two / "folder" / "inner"):
        assert os.getxattr(folder, ACCESS) == os.getxattr(folder, DEFAULT) == value
    assert mode(two / "folder") == 0o770
    assert os.listxattr(two / "link", follow_symlinks=False) == []
    assert may(two, ": >> file; : > folder/inner/new", LOIS)
    os.removexattr(one, DEFAULT)
    run(one, "sh", "-c", f"umask {umask}; : > plain; mkdir plainer")
    assert (mode(two / "plain"), mode(two / "plainer")) == (0o666 & ~int(umask, 8), 0o777 & ~int(umask, 8))
    assert os.listxattr(two / "plain") == []


@needs_root
def test_users_set_acls_of_their_own_files(places: tuple[Path, Path]) -> None:
    one, two = places
    one.chmod(0o1777)
    run(one, "sh", "-c", "umask 077; echo content > file", uid=LOIS)
    value = extended(0o640, users=[(MARK, 4)])
    script = f"import os; os.setxattr('file', '{ACCESS}', bytes.fromhex('{value.hex()}'))"
    python = shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin")
    assert python is not None
    assert not may(two, f'{python} -c "{script}"', MARK)
    assert not may(two, "cat file", MARK)
    assert may(one, f'{python} -c "{script}"', LOIS)
    assert may(two, "cat file", MARK)


# One mount for one user


@pytest.fixture(scope="module")
def users(shared_realm: RealRealm) -> Iterator[tuple[RealMount, RealMount]]:
    """The mounts of two users."""
    shared_realm.join("irene", "jacob")
    with (
        RealMount(shared_realm, "acl-irene", "irene") as one,
        RealMount(shared_realm, "acl-jacob", "jacob") as two,
    ):
        yield one, two


@pytest.fixture
def theirs(users: tuple[RealMount, RealMount], request: pytest.FixtureRequest) -> tuple[Path, Path, int]:
    """A fresh directory of irene, as she and jacob see it; and what number he has at hers."""
    name = request.node.name
    (users[0].path / name).mkdir()
    (users[1].path / f"{name}-of-jacob").touch()
    number = (users[0].path / f"{name}-of-jacob").stat().st_uid
    return users[0].path / name, users[1].path / name, number


def test_another_user_may_what_the_acl_says(theirs: tuple[Path, Path, int]) -> None:
    irene, jacob, number = theirs
    (irene / "file").write_text("content")
    (irene / "file").chmod(0o600)
    assert mode(irene / "file") == 0o600
    with pytest.raises(PermissionError):
        (jacob / "file").read_text()
    value = extended(0o660, users=[(number, 6)])
    os.setxattr(irene / "file", ACCESS, value)
    assert mode(irene / "file") == 0o660
    assert os.getxattr(irene / "file", ACCESS) == value
    assert os.listxattr(irene / "file") == [ACCESS]
    with (jacob / "file").open("a") as file:
        file.write(", and more")
    assert (irene / "file").read_text() == "content, and more"
    with pytest.raises(PermissionError):
        os.setxattr(jacob / "file", ACCESS, value)
    (irene / "file").chmod(0o640)
    assert os.getxattr(irene / "file", ACCESS) == extended(0o640, users=[(number, 6)])
    with pytest.raises(PermissionError):
        (jacob / "file").open("a")
    assert (jacob / "file").read_text() == "content, and more"
    os.removexattr(irene / "file", ACCESS)
    assert os.listxattr(irene / "file") == []


@programs("stat")
def test_the_mode_that_an_acl_brings_is_seen_alone(theirs: tuple[Path, Path, int]) -> None:
    """stat(1) asks for nothing but the mode, which the kernel may think it knows."""
    irene, _, number = theirs
    (irene / "folder").mkdir(mode=0o700)
    for permissions in (0o750, 0o710, 0o770):
        os.setxattr(irene / "folder", ACCESS, extended(permissions, users=[(number, 7)]))
        assert run(irene, "stat", "-c", "%a", "folder").strip() == f"{permissions:o}"


def test_a_default_acl_stands_for_the_umask(theirs: tuple[Path, Path, int]) -> None:
    irene, jacob, number = theirs
    value = extended(0o770, users=[(number, 7)], group=5)
    os.setxattr(irene, DEFAULT, value)
    run(irene, "sh", "-c", "umask 077; echo content > file; mkdir folder; mkfifo fifo")
    assert os.getxattr(irene / "folder", ACCESS) == os.getxattr(irene / "folder", DEFAULT) == value
    assert (mode(irene / "file"), mode(irene / "folder"), mode(irene / "fifo")) == (0o660, 0o770, 0o660)
    assert (jacob / "file").read_text() == "content\n"
    (jacob / "folder" / "his").touch()


def test_everybody_is_shown_as_who_mounted_in_acls_too(theirs: tuple[Path, Path, int]) -> None:
    irene, jacob, number = theirs
    (irene / "file").touch()
    os.setxattr(irene / "file", ACCESS, extended(0o660, users=[(number, 6), (os.getuid(), 4), (4711, 1)]))
    its_owner = (jacob / "file").stat().st_uid
    assert os.getxattr(jacob / "file", ACCESS) == extended(
        0o660, users=[(os.getuid(), 6), (its_owner, 4), (4711, 1)]
    )


def test_a_directory_opens_and_closes_by_its_acl(theirs: tuple[Path, Path, int]) -> None:
    irene, jacob, number = theirs
    (irene / "closed").mkdir(mode=0o700)
    (irene / "closed" / "file").write_text("content")
    for _ in range(5):
        with pytest.raises(PermissionError):
            (jacob / "closed" / "file").read_text()
        os.setxattr(irene / "closed", ACCESS, extended(0o770, users=[(number, 7)]))
        assert (jacob / "closed" / "file").read_text() == "content"
        (jacob / "closed" / "new").write_text("his own")
        (jacob / "closed" / "new").unlink()
        os.setxattr(irene / "closed", ACCESS, extended(0o700, users=[(number, 7)]))


def test_an_acl_set_while_writing_stays(theirs: tuple[Path, Path, int]) -> None:
    irene, jacob, number = theirs
    with (irene / "file").open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write("content")
        file.flush()
        os.setxattr(file.fileno(), ACCESS, extended(0o660, users=[(number, 4)]))
        assert mode(irene / "file") == 0o660
        file.write(" and more")
    assert os.getxattr(irene / "file", ACCESS) == extended(0o660, users=[(number, 4)])
    assert (jacob / "file").read_text() == "content and more"


@programs("setfacl", "getfacl")
def test_setfacl_and_getfacl(theirs: tuple[Path, Path, int]) -> None:
    irene, jacob, number = theirs
    (irene / "folder").mkdir(mode=0o750)
    run(irene, "setfacl", "-m", f"u:{number}:rwx,d:u:{number}:rx,d:o:-", "folder")
    said = run(irene, "getfacl", "--numeric", "--omit-header", "folder").split()
    assert said[:5] == ["user::rwx", f"user:{number}:rwx", "group::r-x", "mask::rwx", "other::---"]
    assert said[5:] == [
        "default:user::rwx",
        f"default:user:{number}:r-x",
        "default:group::r-x",
        "default:mask::r-x",
        "default:other::---",
    ]
    (irene / "folder" / "file").write_text("content")
    assert (jacob / "folder" / "file").read_text() == "content"
    run(irene, "setfacl", "--remove-all", "folder")
    assert os.listxattr(irene / "folder") == []
    assert mode(irene / "folder") == 0o750


COPIES = {
    "cp": "cp -a from to",
    "rsync": "rsync -aAX from/ to/",
    "tar": "tar --acls -cf archive from && mkdir to && tar --acls --strip-components 1 -C to -xpf archive",
}


@pytest.mark.parametrize("program", [pytest.param(name, marks=programs(name)) for name in COPIES])
def test_programs_that_copy_keep_acls(theirs: tuple[Path, Path, int], program: str) -> None:
    irene, jacob, number = theirs
    origin = irene / "from"
    origin.mkdir()
    (origin / "file").write_text("content")
    (origin / "plain").write_text("content")
    (origin / "plain").chmod(0o640)
    (origin / "folder").mkdir()
    os.setxattr(origin / "file", ACCESS, extended(0o664, users=[(number, 6)], group=4))
    os.setxattr(origin / "folder", ACCESS, extended(0o770, users=[(number, 7)], group=5))
    os.setxattr(origin / "folder", DEFAULT, extended(0o750, users=[(number, 5)], group=5))
    run(irene, "sh", "-c", COPIES[program])
    for name in ("file", "plain", "folder"):
        was, copy = origin / name, jacob / "to" / name
        assert (mode(was), set(os.listxattr(was))) == (mode(copy), set(os.listxattr(copy)))
    for name, attribute in (("file", ACCESS), ("folder", ACCESS), ("folder", DEFAULT)):
        assert os.getxattr(irene / "to" / name, attribute) == os.getxattr(origin / name, attribute)
