"""Programs at work on two mounts at the same time; tests.support.two_writers does it for longer."""

from tests.programs.sides import Sides, need
from tests.support.two_writers import run

SECONDS = 4.0


@need("git")
def test_git_pushes_from_two_mounts_to_one_repository(sides: Sides) -> None:
    assert min(run("git", sides.mounts, SECONDS)) > 0


def test_sqlite_counts_from_two_mounts_in_one_database(sides: Sides) -> None:
    assert sum(run("sqlite", sides.mounts, SECONDS)) > 0
