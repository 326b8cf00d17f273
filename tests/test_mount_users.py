"""Several local users in one trusted mount, and sparse files: through the kernel and both bindings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.bindings.callers import caller
from tests.support.mounts import fresh_mount
from tests.support.realm import RealRealm
from wire.limits import CALLER_GIDS_MAX

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
]

OWNER, MEMBER, STRANGER = (3001, [4001]), (3002, [4002, 4001]), (3003, [4003])


@pytest.fixture(scope="module", params=["native", "fusepy"])
def place(request: pytest.FixtureRequest, shared_realm: RealRealm) -> Iterator[Path]:
    """A directory for everybody in a trusted mount."""
    user = f"tess-{request.param}"
    shared_realm.sign_up(user)
    shared_realm.run("user", user, "--trusted", user="admin")
    shared_realm.log_in(user)
    with fresh_mount(shared_realm, user, "--trusted", "--allow-other", binding=request.param) as mount:
        place = mount.path / user
        place.mkdir()
        place.chmod(0o777)
        yield place


def run(place: Path, who: tuple[int, list[int]], code: str) -> str:
    """What ``code`` prints, run by a user whose current directory is ``place``. None of the folders above it
    needs to let him in."""
    uid, gids = who
    begin = f"import os, stat; os.setgroups({gids}); os.setgid({gids[0]}); os.setuid({uid}); os.umask(0)"
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}\n{code}"], cwd=place, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_what_the_kernel_and_the_binding_make_of_set_id_bits(place: Path) -> None:
    """Root's writes leave them, others' take them away, whoever the owner is."""
    made = "os.close(os.open('{0}', os.O_CREAT | os.O_WRONLY)); os.chmod('{0}', 0o6777)"
    look = "print(oct(stat.S_IMODE(os.stat('{0}').st_mode)))"
    writes = {
        "write": "f = os.open('{0}', os.O_WRONLY); os.write(f, b'x'); os.close(f)",
        "truncate": "os.truncate('{0}', 3)",
        "same": "os.truncate('{0}', 0)",
        "trunc": "os.close(os.open('{0}', os.O_WRONLY | os.O_TRUNC))",
        "append": "f = os.open('{0}', os.O_WRONLY | os.O_APPEND); os.write(f, b'x'); os.close(f)",
    }
    for name, write in writes.items():
        run(place, OWNER, made.format(name))
        assert run(place, (0, [0]), f"{write}; {look}".format(name)) == "0o6777", name
        assert run(place, STRANGER, f"{write}; {look}".format(name)) == "0o777", name
    run(place, OWNER, made.format("late"))
    after = "f = os.open('late', os.O_RDWR); os.write(f, b'x'); os.fchmod(f, 0o4755); os.close(f);"
    assert run(place, OWNER, after + look.format("late")) == "0o4755"


def test_supplementary_groups_count(place: Path) -> None:
    run(place, OWNER, "os.mkdir('team'); os.chmod('team', 0o2770); open('team/file', 'w').write('ours')")
    run(place, OWNER, "os.chmod('team/file', 0o640)")
    read = "print(open('team/file').read()); open('team/new', 'w'); print(os.stat('team/new').st_gid)"
    assert run(place, MEMBER, read).split() == ["ours", "4001"]
    denied = "try: open('team/file')\nexcept OSError as error: print(error.errno)"
    assert run(place, STRANGER, denied) == "13"


def test_holes_are_found(place: Path) -> None:
    with (place / "sparse").open("wb") as file:
        file.truncate(9 << 20)
        file.write(b"data")
        file.flush()
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert 4 <= os.lseek(file.fileno(), 0, os.SEEK_HOLE) <= 4 << 20


def test_of_very_many_groups_the_first_ones_count() -> None:
    """More fit no request, which would be refused whole."""
    groups = range(5000, 5000 + CALLER_GIDS_MAX)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, extra_groups=groups) as process:
        assert caller(3001, 4001, process.pid).gids == [4001, *groups[:-1]]
        process.communicate()
