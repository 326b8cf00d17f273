"""Programs that lock for themselves exclude each other on two mounts: lock files, flock(1), mailboxes."""

import mailbox
import subprocess
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.programs.sides import SECONDS, Sides, need

TIMES = 10
COUNT = "n=$(cat counter); echo $((n + 1)) > counter.new; mv counter.new counter"


def count_on_both(sides: Sides, once: str) -> None:
    """Both mounts count up one number at the same time: a script that does ``once`` again and again."""
    (sides.mounts[0] / "counter").write_text("0\n")
    script = f"for i in $(seq {TIMES}); do {once}; done"
    both = [
        subprocess.Popen(["sh", "-ec", script], cwd=folder, env=sides.environment) for folder in sides.mounts
    ]
    assert [program.wait(SECONDS) for program in both] == [0, 0]
    for folder in sides.mounts:
        assert (folder / "counter").read_text() == f"{2 * TIMES}\n"


@pytest.mark.parametrize(
    ("take", "give"),
    [
        ("mkdir lock 2>/dev/null", "rmdir lock"),
        ("ln -s $$ lock 2>/dev/null", "rm lock"),
        ("{ set -C; { : > lock; } 2>/dev/null; }", "rm lock"),
        ("{ echo $$ > own.$$; ln own.$$ lock 2>/dev/null; }", "rm lock own.$$"),
    ],
    ids=["mkdir", "symlink", "exclusive", "link"],
)
def test_what_can_be_made_only_once(sides: Sides, take: str, give: str) -> None:
    count_on_both(sides, f"until (set +e; {take}); do sleep 0.01; done; {COUNT}; {give}")
    assert [name for name in ("lock",) if (sides.mounts[0] / name).exists()] == []


@need("flock")
def test_flock(sides: Sides) -> None:
    count_on_both(sides, f"flock lock sh -ec '{COUNT}'")


@need("flock")
def test_flock_tells_at_once_that_another_mount_has_it(sides: Sides) -> None:
    one, two = sides.mounts
    holder = subprocess.Popen(
        ["flock", "lock", "sh", "-c", "echo has it; read word"],
        cwd=one,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"has it\n"
        tried = ["flock", "--nonblock", "--conflict-exit-code", "33", "lock", "true"]
        assert subprocess.run(tried, cwd=two, check=False, timeout=SECONDS).returncode == 33
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert holder.wait(SECONDS) == 0
    assert subprocess.run(["flock", "lock", "true"], cwd=two, check=False, timeout=SECONDS).returncode == 0


def deliver(path: Path, number: int) -> None:
    """As a program that delivers mail: the lock of fcntl(2) and a lock file, then one message at the end."""
    box = mailbox.mbox(path)
    box.lock()
    try:
        message = EmailMessage()
        message["Subject"] = f"number {number}"
        message.set_content("From the beginning of a line on\n" * number)
        box.add(message)
        box.flush()
    finally:
        box.unlock()
        box.close()


def test_a_mailbox_filled_from_both_mounts(sides: Sides) -> None:
    for number in range(6):
        deliver(sides.mounts[number % 2] / "box", number)
    one = mailbox.mbox(sides.mounts[0] / "box")
    one.lock()
    assert [message["Subject"] for message in one] == [f"number {number}" for number in range(6)]
    two = mailbox.mbox(sides.mounts[1] / "box")
    with pytest.raises(mailbox.ExternalClashError):
        two.lock()
    two.close()
    one.remove(one.keys()[2])
    one.flush()
    one.unlock()
    one.close()
    two = mailbox.mbox(sides.mounts[1] / "box")
    two.lock()
    assert [message["Subject"] for message in two] == [f"number {number}" for number in (0, 1, 3, 4, 5)]
    two.close()
