"""How editors save: over the file, by renaming, with backups; what is linked, or a link; from each mount."""

import os
import pty
import select
import signal
import subprocess
from pathlib import Path

import pytest

from tests.programs.sides import SECONDS, Sides, need

VIM = ("vim", "-es", "-u", "NONE", "-i", "NONE")


def write(here: Path) -> None:
    """A file, a hard link and a symlink to it."""
    (here / "text").write_text("first line\nsecond line\n")
    (here / "text").chmod(0o640)
    os.link(here / "text", here / "hard")
    (here / "link").symlink_to("text")


@need("vim")
@pytest.mark.parametrize("way", ["backupcopy=auto", "backupcopy=yes", "backupcopy=no"])
@pytest.mark.parametrize("keeps", ["nobackup", "backup"])
def test_vim(sides: Sides, way: str, keeps: str) -> None:
    sides.do(write)
    for number, name in enumerate(("text", "link", "hard", "new")):
        change = f"normal oadded {number}"
        sides.run(*VIM, "-c", f"set {way} {keeps} backupskip=", "-c", change, "-c", "wq", name)
        sides.check("mtime")


@need("vim")
def test_vim_finds_the_swap_file_of_another_mount(sides: Sides) -> None:
    one, two = sides.mounts
    (one / "text").write_text("content\n")
    first = subprocess.Popen(
        [*VIM, "text"], cwd=one, env=sides.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdin is not None and first.stdout is not None
    with first.stdin, first.stdout:
        first.stdin.write(b"normal ochanged\npreserve\nset tabstop?\n")
        first.stdin.flush()
        assert first.stdout.readline(), "it is done with what it was told"
        assert [name for name in os.listdir(two) if name.endswith(".swp")] == [".text.swp"]
        second = [*VIM, "-c", "call writefile([swapname('%')], 'seen')", "-c", "q", "text"]
        subprocess.run(second, cwd=two, env=sides.environment, check=False, timeout=SECONDS)
        first.stdin.write(b"wq\n")
        first.stdin.flush()
        assert first.wait(SECONDS) == 0
    assert (two / "text").read_text() == "content\nchanged\n"
    assert ".text.swp" not in os.listdir(two)


@need("nano")
@pytest.mark.parametrize("options", [[], ["-B"]], ids=["plain", "backup"])
def test_nano(sides: Sides, options: list[str]) -> None:
    sides.do(write)
    for number, name in enumerate(("text", "link", "hard", "new")):
        for folder in (sides.local, sides.mounts[number % 2]):
            assert (
                type_into(["nano", "-I", *options, name], f"typed {number}\r\x0f\r\x18", folder, sides) == 0
            )
        sides.check("mtime")


def type_into(words: list[str], keys: str, folder: Path, sides: Sides) -> int:
    """Runs a program on a terminal of its own, waits until it shows something, and types. Its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(words[0], words, sides.environment | {"TERM": "xterm"})
    asked = ended = False
    try:
        while not ended:
            ready, _, _ = select.select([terminal], [], [], SECONDS)
            assert ready, f"{words}: shows nothing"
            try:
                ended = not os.read(terminal, 1 << 16)
            except OSError:  # how Linux says that nobody has the terminal any more
                ended = True
            if not asked and not ended:
                os.write(terminal, keys.encode())
                asked = True
    finally:
        os.close(terminal)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@need("sed")
def test_sed_and_the_shell(sides: Sides) -> None:
    sides.do(write)
    sides.run("sed", "-i", "s/first/FIRST/", "text")
    sides.run("sed", "-i.old", "--follow-symlinks", "s/second/SECOND/", "link")
    sides.check("mtime")
    sides.shell("for i in 1 2 3; do echo line $i >> log; done; sort -r -o log log; wc -l < log; cat log")
    sides.shell("truncate -s 7 log; mv log moved; cat < moved | tee again; cat again moved > both; ls")
    sides.shell(
        "set -C; ! echo no > moved; set +C; head -c 3 both | dd of=both conv=notrunc seek=1 bs=2 status=none"
    )
    sides.shell("mkfifo pipe; cat pipe > copied & cat text > pipe; wait; cat copied")
    sides.check("mtime")
