"""Whether two folders show one tree: content, modes, owners, times, links, extended attributes, devices.

As a program it prints what differs, and its exit status is 1 if that is anything. The two are one folder on
two mounts, so that inode numbers, link counts of folders, and all times are the same too; with ``--copies``
that is not asked for::

    python -m tests.support.same_tree /mnt/one/tree /mnt/two/tree
"""

import argparse
import hashlib
import os
import stat
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PIECE_BYTES = 1 << 20
COPIES = frozenset({"inode", "changed", "folder"})
"""What copies need not have in common: fields of ``Shown``."""


@dataclass(frozen=True)
class Shown:
    """One name of a tree. ``first`` is the first path of the tree that names the inode."""

    kind_and_mode: str
    owner: tuple[int, int]
    size: int  # 0 of a folder
    links: int  # 0 of a folder
    first: str
    content: str
    device: int
    xattrs: dict[str, bytes]
    mtime: int  # ns
    inode: int
    changed: tuple[int, int]  # atime, ctime; ns
    folder: tuple[int, int]  # size, links


def shown(folder: Path, skipped: Collection[str] = ()) -> dict[str, Shown]:
    """All names below a folder, and the folder, by their relative paths; without the names in ``skipped`` and
    what is below them."""
    firsts: dict[int, str] = {}
    return {path: _shown(folder / path, path, firsts) for path in sorted(_paths(folder, skipped))}


def differences(
    one: Path, two: Path, ignored: Collection[str] = (), skipped: Collection[str] = ()
) -> list[str]:
    """A line for each difference, none if the trees are the same. ``ignored`` are fields of ``Shown``."""
    here, there = shown(one, skipped), shown(two, skipped)
    lines = [f"{path}: only in {one}" for path in sorted(here.keys() - there.keys())]
    lines += [f"{path}: only in {two}" for path in sorted(there.keys() - here.keys())]
    for path in sorted(here.keys() & there.keys()):
        left, right = asdict(here[path]), asdict(there[path])
        different = [key for key in left if left[key] != right[key] and key not in ignored]
        lines += [f"{path}: {key} {left[key]!r}, {right[key]!r}" for key in different]
    return lines


def _paths(folder: Path, skipped: Collection[str]) -> Iterator[str]:
    yield "."
    for path, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = [name for name in folders if name not in skipped]
        for name in folders + files:
            if name not in skipped:
                yield os.path.relpath(os.path.join(path, name), folder)


def _fail(error: OSError) -> None:
    raise error


def _shown(full: Path, path: str, firsts: dict[int, str]) -> Shown:
    status = full.lstat()
    size, links = status.st_size, status.st_nlink
    is_folder = stat.S_ISDIR(status.st_mode)
    return Shown(
        kind_and_mode=stat.filemode(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        size=0 if is_folder else size,
        links=0 if is_folder else links,
        first=firsts.setdefault(status.st_ino, path),
        content=_content(full, status.st_mode),
        device=status.st_rdev,
        xattrs=_xattrs(full),
        mtime=status.st_mtime_ns,
        inode=status.st_ino,
        changed=(status.st_atime_ns, status.st_ctime_ns),
        folder=(size, links) if is_folder else (0, 0),
    )


def _content(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _xattrs(path: Path) -> dict[str, bytes]:
    """Without those that a security module of this machine has made."""
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if not name.startswith("security.")
    }


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    parser.add_argument("--copies", action="store_true")
    options = parser.parse_args()
    found = differences(options.one, options.two, COPIES if options.copies else ())
    print("\n".join(found) or "the same")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
