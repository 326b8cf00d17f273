"""Programs that lock for themselves exclude each other on two mounts, with what can be made only once."""

import subprocess

import pytest

from tests.programs.sides import SECONDS, Sides

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
