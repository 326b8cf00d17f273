"""The documents name what there is: every route, message, field and error, and only commands that exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from flask import Flask

from dfs.main import VERBS, cli
from servers.auth.app import make_server as make_auth
from servers.auth.config import AuthConfig
from servers.directory.app import make_server as make_directory
from servers.directory.config import DirectoryConfig
from servers.directory.feed_listener import PATHS
from servers.files.app import make_server as make_files
from servers.files.config import FilesConfig
from servers.keys import new_realm_keys
from servers.lock.app import make_server as make_lock
from servers.lock.config import LockConfig
from servers.web import Server
from wire.errors import DfsError

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SEMANTICS = (ROOT / "docs" / "semantics.md").read_text()
README = (ROOT / "README.md").read_text()
FEED_ROUTES = [f"POST {path}" for path in PATHS]
MODULES = [f"wire.messages.{name}" for name in ("common", "auth", "directory", "files", "lock")]


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[list[Flask]]:
    keys = new_realm_keys()

    def database(name: str) -> str:
        return f"sqlite:///{tmp_path / name}.sqlite"

    url = "http://127.0.0.1:1"
    servers: list[Server] = [
        make_auth(AuthConfig(keys["auth"], database("auth"), url, url)),
        make_directory(DirectoryConfig(keys["directory"], database("directory"))),
        make_lock(LockConfig(keys["lock"], database("lock"))),
        make_files(FilesConfig(keys["files"], tmp_path / "files", "files-1", url, url)),
    ]
    yield [server.app for server in servers]
    for server in servers:
        server.close()


def structs() -> dict[str, type[msgspec.Struct]]:
    """Every message, and what services seal for one another."""
    found: dict[str, type[msgspec.Struct]] = {}
    for name in [*MODULES, "wire.tickets", "wire.errors"]:
        for kind in vars(importlib.import_module(name)).values():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == name:
                found[kind.__name__] = kind
    return found


def section(name: str) -> str:
    """What the protocol says of a struct: from its name in bold to the next one, or heading."""
    _, found, rest = PROTOCOL.partition(f"\n**`{name}`**")
    assert found, f"docs/protocol.md has no table of {name}"
    return re.split(r"\n\*\*`|\n#", rest)[0]


def first_table(text: str) -> str:
    """The first table in it, or nothing."""
    match = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return match[0] if match else ""


def commands() -> list[list[str]]:
    """The words of every ``dfs`` command in the README: in its examples and in its text."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    lines += re.findall(r"`(dfs [^`]*)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return [shlex.split(line) for line in lines if line.startswith("dfs ")]


def test_every_route_is_documented(apps: list[Flask]) -> None:
    routes = [rule for app in apps for rule in app.url_map.iter_rules()]
    assert len(routes) > 30
    assert all(f"`{route}`" in PROTOCOL for route in FEED_ROUTES)
    for rule in routes:
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert f"`{method} {rule.rule}`" in PROTOCOL


def test_no_route_is_documented_that_does_not_exist(apps: list[Flask]) -> None:
    routes = {
        f"{method} {rule.rule}"
        for app in apps
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    routes.update(FEED_ROUTES)
    assert set(re.findall(r"\| `((?:GET|PUT|POST|DELETE) [^`]+)`", PROTOCOL)) <= routes


@pytest.mark.parametrize("name", structs())
def test_every_message_is_documented_with_all_of_its_fields(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", first_table(section(name)), re.MULTILINE)
    assert rows == list(structs()[name].__struct_encode_fields__)


def test_every_test_that_the_semantics_are_shown_by_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", SEMANTICS))
    assert len(named) > 50
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert not {name for name in named if f"\ndef {name}(" not in tests}


def test_each_sentence_of_the_semantics_is_shown_by_a_test() -> None:
    told = SEMANTICS.partition("## Opening")[2].partition("## Limits")[0]
    points = re.split(r"^(?:- |#+ )", told, flags=re.MULTILINE)
    assert not [point for point in points if len(point) > 60 and "`test_" not in point]


def test_every_error_is_documented() -> None:
    kinds = DfsError.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert f"`{kind.__name__}`" in PROTOCOL


def test_every_command_in_the_readme_exists_with_its_options() -> None:
    found = commands()
    assert len(found) > 15
    for _, *words in found:
        if words[0] == "COMMAND":
            continue
        assert words[0] in VERBS, words
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None
        options = {option for parameter in command.params for option in parameter.opts}
        wanted = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert wanted <= options, words


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
