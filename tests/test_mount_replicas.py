"""Two file servers: either one may be away, or its disk may rot, and a mount notices nothing."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import RealMount, fresh_mount, tree
from tests.support.realm import RealRealm
from tests.support.times import wait_until
from wire.chunking import fits

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm whose file servers may be stopped."""
    with RealRealm(tmp_path_factory.mktemp("replicas") / "realm") as realm:
        realm.join("rosa")
        yield realm


@pytest.fixture(scope="module")
def mount(own_realm: RealRealm) -> Iterator[RealMount]:
    """A mount that stays."""
    with RealMount(own_realm, "stays", "rosa") as mount:
        yield mount


def write_some(folder: Path) -> dict[str, bytes]:
    """Files whose chunks are rows of a file server's database, files, and more than one."""
    folder.mkdir(exist_ok=True)
    content = {
        "small": os.urandom(100),
        "middle": os.urandom(300_000),
        "big": os.urandom(9 * MIB),
        "empty": b"",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return {f"{folder.name}/{name}": data for name, data in content.items()}


def read_all(realm: RealRealm) -> dict[str, bytes]:
    """Every file of the realm, by a mount that has nothing yet."""
    with fresh_mount(realm, "rosa") as empty:
        return tree(empty.path)


def wait_replicated(realm: RealRealm) -> None:
    """Until every chunk has all of its copies."""

    def is_replicated() -> bool:
        chunks = realm.status()["chunks"]
        return chunks is not None and chunks["total"] > 0 and chunks["lacking"] == 0

    wait_until(is_replicated, 60)


def test_either_server_may_be_away(own_realm: RealRealm, mount: RealMount) -> None:
    content = write_some(mount.path / "both")
    for away, other in (("files-1", "files-2"), ("files-2", "files-1")):
        own_realm.stop(away)
        assert read_all(own_realm) == content
        content |= write_some(mount.path / f"without-{away}")
        with (mount.path / "both" / "big").open("r+b") as file:
            file.seek(5 * MIB)
            file.write(away.encode())
        start, end = content["both/big"][: 5 * MIB], content["both/big"][5 * MIB + len(away) :]
        content["both/big"] = start + away.encode() + end
        assert own_realm.status()["chunks"]["lacking"] > 0
        own_realm.go_on(away)
        wait_replicated(own_realm)
        own_realm.stop(other)
        assert read_all(own_realm) == content, f"what was written while {away} was away is there by itself"
        own_realm.go_on(other)
        wait_replicated(own_realm)


def primary_files(realm: RealRealm, path: Path) -> list[Path]:
    """Where the primary of each chunk of ``path`` keeps it, for chunks that are files of their own."""
    roots = {one["url"]: realm.root / one["name"] for one in realm.status()["services"]}
    found = json.loads(realm.run("where", "--json", str(path), user="rosa").stdout)
    chunks = [(roots[chunk["servers"][0]["url"]], chunk["id"]) for chunk in found["chunks"]]
    return [root / "chunks" / name[:2] / name for root, name in chunks]


def damage(file: Path) -> None:
    """Changes one bit."""
    with file.open("r+b") as chunk:
        chunk.seek(1000)
        byte = chunk.read(1)
        chunk.seek(1000)
        chunk.write(bytes([byte[0] ^ 1]))


def is_healed(file: Path) -> bool:
    """Whether a chunk was found to be damaged, and is there and whole again."""
    aside = file.parents[2] / "damaged" / file.name
    return aside.exists() and file.exists() and fits(bytes.fromhex(file.name), file.read_bytes())


def test_a_rotten_disk_changes_nothing_and_heals(own_realm: RealRealm, mount: RealMount) -> None:
    own_realm.expect_log("is damaged; it was set aside")
    own_realm.expect_log("file server . misses . chunks")
    content = write_some(mount.path / "rotten")
    wait_replicated(own_realm)
    files = [
        file for name in ("middle", "big") for file in primary_files(own_realm, mount.path / "rotten" / name)
    ]
    assert len(files) == 4
    for file in files:
        damage(file)
    with fresh_mount(own_realm, "rosa") as empty:
        assert tree(empty.path / "rotten") == {
            name.removeprefix("rotten/"): data for name, data in content.items()
        }
        assert "what it answered is not that chunk" in empty.log(), "the damaged ones were asked first"
    wait_until(lambda: all(map(is_healed, files)), 30)
