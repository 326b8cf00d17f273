"""cp, tar, rsync, zip and find: a copy on DFS has everything that a copy on a local disk has."""

import errno
import os
import random
from pathlib import Path

import pytest

from tests.programs.sides import Sides, need

MIB = 1 << 20
FINE = 10**18 + 123_456_789
WHOLE = 6 * 10**17
"""Times in ns; the second is one that tar and zip can say too."""


def grow(folder: Path, when: int) -> None:
    """A tree of modes, links, holes, a FIFO, an extended attribute and odd names, as of ``when``."""
    drawn = random.Random(1)
    (folder / "below" / "empty").mkdir(parents=True)
    for number in range(12):
        file = folder / "below" / f"file {number}"
        file.write_bytes(drawn.randbytes(number * 700))
        file.chmod((0o600, 0o644, 0o755, 0o4755, 0o2640)[number % 5])
    with (folder / "sparse").open("wb") as sparse:
        for place in (3 * MIB, 17 * MIB):
            sparse.seek(place)
            sparse.write(b"between holes" * 100)
        sparse.truncate(24 * MIB)
    os.link(folder / "below" / "file 1", folder / "hard")
    (folder / "link").symlink_to("below/file 3")
    (folder / "dangling").symlink_to("no/where/" * 30)
    os.mkfifo(folder / "fifo", 0o600)
    (folder / os.fsdecode(b"not UTF-8 \xff\xfe")).write_text("a name of bytes")
    (folder / ("long" * 63)).write_text("a name of 252 bytes")
    (folder / "below").chmod(0o2750)
    mark(folder / "below" / "file 4")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, ns=(when, when), follow_symlinks=False)


def mark(file: Path) -> None:
    """An extended attribute, where the local file system has them."""
    try:
        os.setxattr(file, "user.mark", b"kept by copies")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise


@pytest.fixture
def source(sides: Sides) -> Sides:
    """A tree ``source`` in both folders."""
    sides.do(lambda here: grow(here / "source", FINE))
    sides.check()
    return sides


def is_sparse(path: Path) -> bool:
    """Whether it takes less than half of its size."""
    return path.stat().st_blocks * 512 < path.stat().st_size / 2


def test_cp_keeps_everything(source: Sides) -> None:
    source.run("cp", "-a", "--reflink=auto", "source", "copy")
    source.run("cp", "-a", "--sparse=always", "source", "sparse")
    source.run("mv", "copy", "moved")
    source.check()
    for name in ("moved", "sparse"):
        for mount in source.mounts:
            assert is_sparse(mount / name / "sparse"), "holes stay holes"
    source.run("diff", "-r", "--no-dereference", "-x", "fifo", "source", "sparse")


def test_cp_and_rm(source: Sides) -> None:
    source.run("cp", "-al", "source", "linked")
    source.run("cp", "-r", "--no-preserve=mode", "--remove-destination", "source/below/.", "linked")
    source.run("cp", "--backup=numbered", "source/hard", "source/link", "linked")
    source.check("mtime")
    source.run("rm", "-r", "source", "linked/below")
    source.check("mtime")


@need("tar")
def test_tar(source: Sides) -> None:
    source.run("tar", "-S", "--xattrs", "--format=posix", "-cf", "all.tar", "source")
    source.shell("mkdir out; tar --xattrs -xpf all.tar -C out; tar -tf all.tar | sort; tar -df all.tar")
    source.shell("tar -C source -cf - below | tar -xf - -C out; tar -rf all.tar out/source/hard")
    source.check("mtime", skipped={"all.tar"})
    for mount in source.mounts:
        assert is_sparse(mount / "out" / "source" / "sparse")


@need("rsync")
def test_rsync_has_nothing_to_do_the_second_time(source: Sides) -> None:
    rsync = ("rsync", "-aHAX", "--checksum", "--itemize-changes", "--delete", "--sparse")
    assert source.run(*rsync, "source/", "copy")
    assert source.run(*rsync, "source/", "copy") == ""
    source.do(lambda here: (here / "source" / "below" / "file 5").write_text("changed"))
    source.do(lambda here: (here / "source" / "below" / "file 6").unlink())
    source.do(lambda here: (here / "source" / "below" / "file 7").chmod(0o400))
    source.do(lambda here: os.utime(here / "source" / "below", ns=(WHOLE, WHOLE)))
    source.do(lambda here: os.utime(here / "source" / "below" / "file 5", ns=(WHOLE, WHOLE)))
    said = source.run(*rsync, "source/", "copy")
    assert sorted(line.split(maxsplit=1)[1] for line in said.splitlines()) == [
        "below/",
        "below/file 5",
        "below/file 6",
        "below/file 7",
    ]
    source.run("rsync", "-aHAX", "--inplace", "--no-whole-file", "--append-verify", "source/", "copy")
    source.check()


@need("zip", "unzip")
def test_zip(sides: Sides) -> None:
    sides.do(lambda here: grow(here / "source", WHOLE))
    sides.shell(
        "find source ! -type p | sort | zip -q -y all.zip -@; unzip -q all.zip -d out; unzip -tq all.zip"
    )
    sides.shell("python3 -m zipfile -e all.zip again; zip -q -d all.zip 'source/below/*'; unzip -l all.zip")
    sides.check("mtime", skipped={"all.zip"})


def test_find(source: Sides) -> None:
    source.shell(
        "find source -mindepth 1 -printf '%P %y %m %n %l %T@\\n' | sort; find source -size +1M -perm -600"
    )
    source.shell("find source -samefile source/hard | sort; find source -type f -links 2 | wc -l")
    source.shell("find source -name 'file*' -exec grep -c x {} + | sort; du -a source | wc -l")
    source.shell("find source -depth -delete; ls")
    source.check("mtime")
