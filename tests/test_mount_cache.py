"""Local copies of real mounts: never fetched twice, never stale, never over the limit, never in the way."""

import os
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.mounts import RealMount, fresh_mount
from tests.support.realm import RealRealm
from tests.support.times import wait_until

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse")

MIB = 1024 * 1024
ROUNDS = 200
READERS = 4
STRESS_SECONDS = 3.0


@pytest.fixture(scope="module")
def own_realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRealm]:
    """A realm whose file servers may be stopped."""
    with RealRealm(tmp_path_factory.mktemp("cache") / "realm") as realm:
        realm.join("carl")
        yield realm


@pytest.fixture(scope="module")
def one(own_realm: RealRealm) -> Iterator[RealMount]:
    """A mount of ``carl``."""
    with RealMount(own_realm, "one", "carl") as mount:
        yield mount


@pytest.fixture(scope="module")
def two(own_realm: RealRealm) -> Iterator[RealMount]:
    """Another one."""
    with RealMount(own_realm, "two", "carl") as mount:
        yield mount


def chunk_requests(realm: RealRealm) -> int:
    """How many requests for chunks the file servers have answered, all together."""
    count = 0.0
    for service in realm.status()["services"]:
        if service["role"] == "files":
            with urllib.request.urlopen(f"{service['url']}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            count += sum(
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "dfs_requests_total" and sample.labels["endpoint"].startswith("/v1/chunks/")
            )
    return int(count)


def on_disk(mount: RealMount) -> int:
    """What the local copies of a mount take."""
    files = (file for file in (mount.cache / "copies").rglob("*") if file.is_file())
    return sum(file.stat().st_blocks * 512 for file in files)


def test_what_did_not_change_is_fetched_once(own_realm: RealRealm, one: RealMount) -> None:
    content = {"small": b"small", "empty": b"", "big": os.urandom(9 * MIB), "middle": os.urandom(100_000)}
    for name, data in content.items():
        (one.path / name).write_bytes(data)
    with fresh_mount(own_realm, "carl") as mount:
        before = chunk_requests(own_realm)
        assert {name: (mount.path / name).read_bytes() for name in content} == content
        after = chunk_requests(own_realm)
        assert after - before == 5, "three chunks of the big one, one each of two others"
        for _ in range(2):
            mount.umount()
            mount.mount()
            assert {name: (mount.path / name).read_bytes() for name in content} == content
        assert chunk_requests(own_realm) == after
        with (one.path / "big").open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"other")
        changed = content["big"][: 5 * MIB] + b"other" + content["big"][5 * MIB + 5 :]
        before = chunk_requests(own_realm)
        assert (mount.path / "big").read_bytes() == changed
        assert chunk_requests(own_realm) - before == 1, "only the chunk that changed"


def test_never_stale_once_close_has_returned(one: RealMount, two: RealMount) -> None:
    for number in range(ROUNDS):
        writer, reader = (one, two) if number % 4 < 2 else (two, one)
        # Shorter, longer, and often as long as before; within and beyond a page.
        content = f"{number:03} ".encode() * (1, 1, 1000, 3000, 3000, 7)[number % 6]
        (writer.path / "turns").write_bytes(content)
        assert (reader.path / "turns").read_bytes() == content, f"round {number}"


def test_appends_are_seen_while_the_other_side_has_it_open(one: RealMount, two: RealMount) -> None:
    (one.path / "appended").write_bytes(b"0\n")
    expected = b"0\n"
    with (two.path / "appended").open("rb", buffering=0) as early:
        assert early.read() == expected
        for number in range(1, 40):
            line = f"{number}\n".encode() * (number % 3 * 500 + 1)
            with (one.path / "appended").open("ab") as file:
                file.write(line)
            expected += line
            assert (two.path / "appended").read_bytes() == expected
            early.seek(0)
            assert early.read() == expected, "one mount shows one version, through all handles"


def test_many_readers_at_once_never_see_what_is_past(one: RealMount, two: RealMount) -> None:
    closed, stop = 0, threading.Event()
    stale: list[str] = []
    reads = [0] * READERS
    (one.path / "raced").write_text(f"{0:020}")

    def read(reader: int) -> None:
        while not stop.is_set():
            at_least = closed
            found = int((two.path / "raced").read_text())
            if found < at_least:
                stale.append(f"{found} was read after {at_least} was closed")
            reads[reader] += 1

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(READERS)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + STRESS_SECONDS
    while time.monotonic() < end:
        (one.path / "raced").write_text(f"{closed + 1:020}")
        closed += 1
    stop.set()
    for thread in threads:
        thread.join(30)
    print(f"{closed} writes, {sum(reads)} reads")
    assert stale == []
    assert closed > 10
    assert min(reads) > 10


def test_clean_copies_are_evicted_and_dirty_ones_are_not(own_realm: RealRealm, one: RealMount) -> None:
    content = {f"evicted-{number}": os.urandom(3 * MIB) for number in range(5)}
    for name, data in content.items():
        (one.path / name).write_bytes(data)
    with fresh_mount(own_realm, "carl", "--cache-size", "8M") as small:
        for name, data in content.items():
            assert (small.path / name).read_bytes() == data
            assert on_disk(small) <= 8 * MIB
        assert on_disk(small) >= 3 * MIB
        dirty = os.urandom(12 * MIB)
        with (small.path / "dirty").open("w+b") as file:
            file.write(dirty)
            file.flush()
            assert on_disk(small) >= 12 * MIB, "what is not committed stays, whatever the limit is"
            for name, data in content.items():
                assert (small.path / name).read_bytes() == data
            file.seek(0)
            assert file.read() == dirty
        assert (one.path / "dirty").read_bytes() == dirty
        (small.path / "evicted-0").read_bytes()
        wait_until(lambda: on_disk(small) <= 8 * MIB)


def test_without_file_servers(own_realm: RealRealm, one: RealMount) -> None:
    (one.path / "known").write_bytes(b"known here")
    (one.path / "unknown").write_bytes(b"fetched by nobody")
    (one.path / "grown").write_bytes(os.urandom(5 * MIB))
    with fresh_mount(own_realm, "carl", "--deadline", "2") as mount:
        assert (mount.path / "known").read_bytes() == b"known here"
        for server in ("files-1", "files-2"):
            own_realm.stop(server)
        try:
            assert (mount.path / "known").read_bytes() == b"known here"
            for name in ("unknown", "grown"):
                began = time.monotonic()
                with pytest.raises(OSError, match=r"timed out|Input/output"):
                    (mount.path / name).read_bytes()
                assert time.monotonic() - began < 6.0
            assert (mount.path / "known").read_bytes() == b"known here"
            assert os.listdir(mount.path), "names are the directory's"
        finally:
            for server in ("files-1", "files-2"):
                own_realm.go_on(server)
        assert (mount.path / "unknown").read_bytes() == b"fetched by nobody"
        assert (mount.path / "grown").read_bytes() == (one.path / "grown").read_bytes()


def test_umount_and_mount_again_keep_a_file_that_is_changed_elsewhere_meanwhile(
    own_realm: RealRealm, one: RealMount
) -> None:
    (one.path / "meanwhile").write_text("before")
    with fresh_mount(own_realm, "carl") as mount:
        assert (mount.path / "meanwhile").read_text() == "before"
        mount.umount()
        (one.path / "meanwhile").write_text("change")
        mount.mount()
        assert (mount.path / "meanwhile").read_text() == "change"
