"""git says of a repository on DFS what it says of the same one on a local disk, object by object."""

from pathlib import Path

import pytest

from tests.programs.sides import Sides, need

pytestmark = [need("git"), pytest.mark.timeout(300)]

FOLDERS = 12
FILES = 4
COMMITS = 85


def history() -> str:
    """For ``git fast-import``: a commit of 48 files, then 85 with 12 changes each; 3 000 objects in all."""
    lines = []
    for number in range(COMMITS + 1):
        lines += ["commit refs/heads/main", "committer Paula <paula@example.org> 1500000000 +0000", "data 10"]
        lines += [f"change {number:3}"]
        paths = [(folder, file) for folder in range(FOLDERS) for file in range(FILES)]
        for folder, file in paths if number == 0 else paths[number % FILES :: FILES]:
            text = f"{folder} {file} as of {number}\n" * (file + 1)
            lines += [f"M 644 inline part-{folder}/deeper/file-{file}", f"data {len(text)}", text]
    return "\n".join(lines)


def edit(folder: Path) -> None:
    """Changes some files that the last commits leave alone, makes one, removes one."""
    for path in ("part-0/deeper/file-2", "part-1/deeper/file-2", "part-2/deeper/file-2"):
        with (folder / path).open("a") as file:
            file.write("one more line\n")
    (folder / "new").write_text("a new file\n")
    (folder / "part-9" / "deeper" / "file-2").unlink()


def test_a_repository_of_some_thousand_objects(sides: Sides) -> None:
    sides.do(lambda here: (here / "history").write_text(history()))
    sides.shell("git init -q -b main --bare origin; git -C origin fast-import --quiet < history; rm history")
    assert int(sides.shell("git -C origin rev-list --objects --all | wc -l")) > 3000
    sides.shell("git clone -q --no-local origin work")
    assert sides.run("git", "status", "--porcelain", inside="work") == ""

    sides.run("git", "switch", "-q", "-c", "side", "main~3", inside="work")
    sides.do(lambda here: edit(here / "work"))
    sides.shell("git add -A; git commit -q -m edited; git status --porcelain", inside="work")
    sides.shell("git tag -a -m marked v1; git rebase -q main; git log --format='%H %s' -n 5", inside="work")

    sides.shell(
        "git switch -q main; echo main >> part-10/deeper/file-2; git commit -q -a -m 'on main'", "work"
    )
    sides.shell(
        "git merge -q --no-edit side; git log --graph --format=%H -n 5; git diff --stat main~1", "work"
    )

    sides.shell("echo later > later; git stash -q -u; git status --porcelain", inside="work")
    sides.shell("git stash pop -q; git status --porcelain; git clean -q -f", inside="work")
    sides.shell("git worktree add -q ../tree side~2; git -C ../tree log --format=%H -n 2", inside="work")
    sides.shell(
        "git mv part-4 moved; git commit -q -m moved; git reset -q --hard HEAD~1; git status -s", "work"
    )

    sides.shell("git gc -q --prune=now; git count-objects -v | grep -v size; git fsck --strict 2>&1", "work")
    sides.shell("git push -q origin main side; git -C ../origin fsck --strict", inside="work")
    sides.shell("git clone -q origin again; git -C again rev-parse HEAD; git -C again status -s")
    sides.check("mtime", "first", "links", skipped={".git", "origin"})


def test_loose_objects_and_many_refs(sides: Sides) -> None:
    sides.shell("git init -q -b main work; git -C work config gc.auto 0")
    for number in range(3):
        sides.shell(f"for i in 1 2 3 4 5; do echo {number} $i > file-$i; done; git add -A", inside="work")
        sides.shell(f"git commit -q -m {number}; git branch b{number}; git branch -f last", inside="work")
    sides.shell("git branch -q -D b1; git pack-refs --all; git for-each-ref; ls .git/refs/heads", "work")
    sides.shell("git repack -q -a -d; git count-objects -v | grep -v size; git fsck --strict 2>&1", "work")
    sides.check("mtime", skipped={".git"})
