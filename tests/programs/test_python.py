"""pip, virtual environments, and what Python's own library keeps in files."""

import base64
import dbm.dumb
import hashlib
import mailbox
import shelve
import sys
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.programs.sides import Sides

NAME = "tiny-1.0.dist-info"
METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
MODULES = 10


def make_wheel(folder: Path) -> None:
    """A package with a command and ten modules."""
    files = {f"tiny/part_{number}.py": f"value = {number}\n" for number in range(MODULES)}
    files["tiny/__init__.py"] = "from tiny import part_3\n\n\ndef main():\n    print(part_3.value)\n"
    files[f"{NAME}/METADATA"] = METADATA
    files[f"{NAME}/WHEEL"] = WHEEL
    files[f"{NAME}/entry_points.txt"] = "[console_scripts]\ntiny = tiny:main\n"
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(zipfile.ZipInfo(path), text)
        wheel.writestr(zipfile.ZipInfo(f"{NAME}/RECORD"), f"{record}{NAME}/RECORD,,\n")


def digest(text: str) -> str:
    """As RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


OFFLINE = "install --no-index --no-deps --no-cache-dir --disable-pip-version-check --no-compile --quiet"


def test_pip_and_a_virtual_environment(sides: Sides) -> None:
    sides.do(make_wheel)
    sides.run(sys.executable, "-m", "venv", "--without-pip", "env")
    sides.do(lambda here: (here / "program.py").write_text("import json, sys; print(json.dumps(sys.prefix))"))
    assert sides.run("env/bin/python", "program.py") == '"HERE/env"\n'
    sides.run("env/bin/python", "-m", "compileall", "-q", "program.py")
    sides.shell(f"{sys.executable} -m pip --python env/bin/python {OFFLINE} *.whl; env/bin/tiny")
    sides.shell(f"{sys.executable} -m pip {OFFLINE} --target put *.whl; ls put | sort")
    sides.run("env/bin/python", "-c", "import tiny; tiny.main(); print(tiny.__file__)", PYTHONPATH="put")
    sides.shell(f"{sys.executable} -m pip --python env/bin/python uninstall --quiet --yes tiny; ls env/bin")
    sides.check("mtime", "size", "content", skipped={"__pycache__"})


@pytest.mark.timeout(600)  # 1 500 files, three times
def test_a_virtual_environment_with_pip_in_it(sides: Sides) -> None:
    sides.do(make_wheel)
    sides.run(sys.executable, "-m", "venv", "env")
    sides.shell(f"env/bin/python -m pip {OFFLINE} *.whl; env/bin/tiny; env/bin/python -m pip check")
    sides.check("mtime", "size", "content", skipped={"__pycache__"})


def test_databases_of_pythons_own(sides: Sides) -> None:
    def keep(here: Path) -> list[str]:
        with dbm.dumb.open(str(here / "dumb"), "c") as base:
            base[b"key"] = b"value"
            base[b"other"] = b"x" * 10_000
            del base[b"key"]
        with shelve.open(str(here / "shelf")) as shelf:
            shelf["list"] = [*shelf.get("list", []), len(shelf)]
            return [*base_keys(here), *shelf]

    for _ in range(3):
        sides.do(keep)


def base_keys(here: Path) -> list[str]:
    """Of the database as it was left."""
    with dbm.dumb.open(str(here / "dumb"), "r") as base:
        return sorted(map(repr, base))


def test_a_maildir_read_by_one_mount_and_filled_by_the_other(sides: Sides) -> None:
    one, two = sides.mounts
    inbox, read = mailbox.Maildir(one / "mail"), mailbox.Maildir(two / "mail")
    for number in range(5):
        message = EmailMessage()
        message["Subject"] = f"number {number}"
        message.set_content("content\n" * number)
        key = inbox.add(message)
        assert read[key]["Subject"] == f"number {number}"
        found = mailbox.MaildirMessage(read[key])
        found.set_subdir("cur")
        found.set_flags("S")
        read[key] = found
        assert inbox.get_message(key).get_flags() == "S"
    assert sorted(message["Subject"] for message in inbox) == [f"number {number}" for number in range(5)]
    read.clear()
    assert len(inbox) == 0
