"""``dfs status`` for people, in a terminal that is not wide."""

import time

import pytest

from dfs.status import Mount, Status
from dfs.status_tables import show


def test_nothing_of_a_mount_is_cut_off_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    place, realm = "/home/adalbert/projects/one", "http://realm.example.org:7400"
    started = time.time() - 48_000.2
    mount = Mount(
        place, "native", True, 2391234, realm, "adalbert", "/c", "/s", started, 7, "1", "mounted", 12, False
    )
    show(Status(realm, [], None, [mount]))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    columns = ["".join(cells) for cells in zip(*shown, strict=True)]
    assert columns == [
        *(place, "mounted,no lease", "adalbert", "realm.example.org:7400", "native,passthrough", "2391234"),
        *("48000 s", "12 files"),
    ]
