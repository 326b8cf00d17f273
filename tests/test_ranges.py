"""Ranges of open files: fallocate(2), lseek(2) and copy_file_range(2) do what they do to a local file."""

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mount.nodes import Handle
from mount.ranges import KEEP_SIZE, PIECE_BYTES, PUNCH_HOLE, ZERO_RANGE
from tests.support.holes import fallocate
from tests.support.stack import Client, Stack
from tests.support.vfs import WatchedWire
from wire.chunking import chunk_count
from wire.limits import CHUNK_BYTES, FILE_BYTES_MAX

READ, WRITE, MAKE = os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT | os.O_TRUNC
BLOCK, CHUNK = 4096, CHUNK_BYTES
COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE = 0x08, 0x20, 0x40
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)

marks = st.sampled_from([0, 0, 1, 100, BLOCK, CHUNK - 3, CHUNK, CHUNK + BLOCK, 2 * CHUNK, 2 * CHUNK + 5])
sizes = st.sampled_from([1, 50, BLOCK, CHUNK - 100, CHUNK, CHUNK + 7])
operations = st.one_of(
    st.tuples(st.just("write"), marks, sizes),
    st.tuples(st.just("cut"), marks, sizes),
    st.tuples(st.just("copy"), marks, sizes, marks),
    st.tuples(st.just("save"), marks, sizes),
    *(st.tuples(st.just(mode), marks, sizes) for mode in MODES),
)


@pytest.fixture(scope="module")
def pair(shared_stack: Stack) -> tuple[Client, Client]:
    """Two clients of the same user."""
    return shared_stack.client(), shared_stack.client()


def fails(run: Callable[[], object]) -> str:
    """The errno's name; empty if nothing was raised."""
    try:
        run()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def places(seek: Callable[[int, int], int]) -> list[int | str]:
    """Where data and holes begin, in turn, and how it ends."""
    found: list[int | str] = [0]
    try:
        for whence in (os.SEEK_DATA, os.SEEK_HOLE) * 20:
            found.append(seek(int(found[-1]), whence))
    except OSError as error:
        found.append(errno.errorcode[error.errno or 0])
    return found


def check_places(client: Client, handle: int, content: bytes) -> None:
    """Every hole is zeros, within the file, and the last place but one is where no data follows."""
    found = places(lambda offset, whence: client.vfs.seek(handle, offset, whence))
    assert found[-1] == "ENXIO"
    borders = [int(place) for place in found[:-1]]
    assert borders == sorted(borders)
    assert borders[-1] <= len(content)
    for hole, data in zip(borders[::2], [*borders[1::2], len(content)], strict=False):
        assert not content[hole:data].strip(b"\0")


class Both:
    """A file here and a local one, to which the same is done."""

    def __init__(self, client: Client, handle: int, local: int) -> None:
        self.client, self.handle, self.local = client, handle, local
        self._byte = 0

    def content(self) -> bytes:
        """Of both, which must be the same."""
        size = os.fstat(self.local).st_size
        content = os.pread(self.local, size, 0)
        assert self.client.vfs.handle_attr(self.handle).size == size
        assert self.client.pread(self.handle, 0, size + 1) == content
        return content

    def do(self, what: str | int, offset: int, size: int, target: int = 0) -> None:
        """One of the operations above."""
        vfs = self.client.vfs
        match what:
            case "write":
                self._byte = self._byte % 255 + 1
                data = bytes([self._byte]) * size
                vfs.write(self.handle, offset, data)
                os.pwrite(self.local, data, offset)
            case "cut":
                vfs._truncate(vfs._handle(self.handle).node, offset)
                os.ftruncate(self.local, offset)
            case "save":
                vfs.flush(self.handle)
            case "copy":
                self._copy(offset, size, target)
            case int():
                vfs.fallocate(self.handle, what, offset, size)
                self._fallocate(what, offset, size)

    def _copy(self, offset: int, size: int, target: int) -> None:
        counts: list[int] = []
        vfs, here, local = self.client.vfs, self.handle, self.local
        ours = fails(lambda: counts.append(vfs.copy_range(here, offset, here, target, size)))
        theirs = fails(lambda: counts.append(os.copy_file_range(local, local, size, offset, target)))
        assert ours == theirs
        assert len(set(counts)) < 2

    def _fallocate(self, mode: int, offset: int, size: int) -> None:
        if mode & ZERO_RANGE:  # tmpfs has none of these
            end = min(offset + size, os.fstat(self.local).st_size) if mode & KEEP_SIZE else offset + size
            os.pwrite(self.local, bytes(max(0, end - offset)), offset)
        else:
            fallocate(self.local, mode, offset, size)


@pytest.fixture
def both(pair: tuple[Client, Client], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Both]:
    """An empty one."""
    local = os.open(tmp_path / "local", MAKE)
    with pair[0].opened(f"/{request.node.name}", MAKE) as handle:
        yield Both(pair[0], handle, local)
    os.close(local)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(operations, max_size=8))
@example(program=[("write", 0, CHUNK + 7), ("save", 0, 0), (ZERO_RANGE, CHUNK - 3, CHUNK), ("cut", 100, 0)])
@example(program=[("write", CHUNK, 50), ("copy", 0, CHUNK + 7, 2 * CHUNK), ("copy", 0, 50, 1)])
def test_a_local_file_does_the_same(
    pair: tuple[Client, Client], tmp_path: Path, program: list[tuple[str | int, int, int]]
) -> None:
    one, two = pair
    local = os.open(tmp_path / "local", MAKE)
    try:
        with one.opened("/same", MAKE) as handle:
            both = Both(one, handle, local)
            for operation in program:
                both.do(*operation)
                check_places(one, handle, both.content())
            content = both.content()
    finally:
        os.close(local)
    with two.opened("/same", READ) as handle:
        attr = two.vfs.handle_attr(handle)
        assert attr.holes == chunk_count(attr.size) - len(two.proxy.directory.manifest(attr.ino).chunks)
        check_places(two, handle, content)
        assert two.pread(handle, 0, len(content) + 1) == content
        check_places(two, handle, content)


def test_holes_are_where_a_local_file_has_them(both: Both) -> None:
    for operation in (
        ("cut", 3 * CHUNK, 0),
        ("write", CHUNK + 2 * BLOCK, 3 * BLOCK),
        ("write", 3 * CHUNK - BLOCK, 2 * BLOCK),
        ("save", 0, 0),
        (PUNCH_HOLE | KEEP_SIZE, CHUNK + 3 * BLOCK, BLOCK),
        ("write", 0, BLOCK),
        ("save", 0, 0),
        ("cut", 4 * CHUNK, 0),
        ("cut", CHUNK + 5 * BLOCK, 0),
    ):
        both.do(*operation)
        ours = places(lambda offset, whence: both.client.vfs.seek(both.handle, offset, whence))
        assert ours == places(lambda offset, whence: os.lseek(both.local, offset, whence))


def test_what_is_not_fetched_is_data_as_far_as_it_is_long(pair: tuple[Client, Client]) -> None:
    one, two = pair
    with one.opened("/elsewhere", MAKE) as handle:
        one.vfs.write(handle, 2 * CHUNK, b"x" * 100)
        one.vfs.flush(handle)  # that makes it a chunk of this length
        one.vfs.write(handle, 200 * CHUNK + 50, b"y")
        one.vfs.fallocate(handle, 0, 300 * CHUNK, 7)
    before = two.copies.used_bytes()
    with two.opened("/elsewhere", READ) as handle:
        assert places(lambda offset, whence: two.vfs.seek(handle, offset, whence)) == [
            *(0, 2 * CHUNK, 2 * CHUNK + 100, 200 * CHUNK, 201 * CHUNK),
            "ENXIO",
        ]
        assert two.vfs.seek(handle, 2 * CHUNK + 40, os.SEEK_DATA) == 2 * CHUNK + 40
        assert two.vfs.seek(handle, 250 * CHUNK, os.SEEK_HOLE) == 250 * CHUNK
    assert two.copies.used_bytes() == before, "nothing was fetched"


def test_seeking_at_and_behind_the_end(both: Both) -> None:
    vfs = both.client.vfs
    for size in (0, 10):
        both.do("write", 0, size)
        for offset in (0, 9, 10, 11, -1):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                ours = fails(partial(vfs.seek, both.handle, offset, whence))
                assert ours == fails(partial(os.lseek, both.local, offset, whence))
    assert fails(lambda: vfs.seek(both.handle, 0, os.SEEK_END)) == "EINVAL"
    assert fails(lambda: vfs.seek(10**9, 0, os.SEEK_DATA)) == "EBADF"


def test_what_fallocate_refuses(both: Both) -> None:
    vfs = both.client.vfs
    both.do("write", 0, 100)
    for mode in (*MODES, COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE, PUNCH_HOLE):
        for offset, size in ((-1, 10), (0, 0), (0, -1), (5, 10), (FILE_BYTES_MAX, 1)):
            ours = fails(partial(vfs.fallocate, both.handle, mode, offset, size))
            if offset < 0 or size <= 0:
                assert ours == "EINVAL"
            elif mode not in MODES:
                assert ours == "ENOTSUP"
            else:
                assert ours == ("EFBIG" if offset == FILE_BYTES_MAX else "")
    with both.client.opened("/refused", MAKE), both.client.opened("/refused", READ) as reader:
        assert fails(lambda: vfs.fallocate(reader, 0, 0, 10)) == "EBADF"


def test_growing_cuts_off_nothing_that_is_appended_meanwhile(both: Both) -> None:
    """The size is looked at and set in one step."""
    vfs = both.client.vfs
    both.do("write", 0, 100)
    vfs.fallocate(both.handle, 0, 0, 50)
    assert len(both.content()) == 100
    handle = vfs._handle(both.handle)
    vfs._grow(handle, 40)
    assert len(both.content()) == 100


# Copying


def test_copying_between_files_keeps_holes(pair: tuple[Client, Client]) -> None:
    one, two = pair
    content = os.urandom(PIECE_BYTES + 17)
    with one.opened("/source", MAKE) as source:
        one.vfs.write(source, 50 * CHUNK, content)
        one.vfs.fallocate(source, 0, 100 * CHUNK, 1)
    with two.opened("/source", READ) as source, two.opened("/target", MAKE) as target:
        two.vfs.write(target, 0, b"x" * 100)
        before = two.copies.used_bytes()
        count = two.vfs.copy_range(source, 10, target, 5, 2**40)
        assert count == 100 * CHUNK + 1 - 10
        assert two.copies.used_bytes() - before < 5 * CHUNK
    with one.opened("/target", READ) as target:
        assert one.vfs.handle_attr(target).size == count + 5
        assert one.pread(target, 0, 10) == b"xxxxx" + bytes(5)
        assert one.pread(target, 50 * CHUNK - 5, len(content) + 1) == content + b"\0"


def test_what_copying_refuses(pair: tuple[Client, Client]) -> None:
    one, _ = pair
    with (
        one.opened("/refusing", MAKE) as both,
        one.opened("/refusing", READ) as reader,
        one.opened("/refusing", WRITE) as writer,
        one.opened("/refusing", WRITE | os.O_APPEND) as appender,
    ):
        copy = one.vfs.copy_range
        one.vfs.write(both, 0, bytes(100))
        assert fails(lambda: copy(writer, 0, both, 200, 10)) == "EBADF"
        assert fails(lambda: copy(both, 0, reader, 200, 10)) == "EBADF"
        assert fails(lambda: copy(both, 0, appender, 200, 10)) == "EBADF"
        assert fails(lambda: copy(both, -1, both, 200, 10)) == "EINVAL"
        assert fails(lambda: copy(reader, 0, writer, 99, 100)) == "EINVAL"
        assert fails(lambda: copy(both, 0, both, FILE_BYTES_MAX, 10)) == "EFBIG"
        assert copy(reader, 0, writer, 100, 200) == 100
        assert copy(reader, 200, writer, 0, 10) == 0


def test_an_error_after_the_first_piece_is_a_short_count(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    put, fail_at = one.vfs._put, 2 * PIECE_BYTES

    def full(handle: Handle, offset: int, data: bytes | memoryview) -> int:
        if offset + len(data) > fail_at:
            raise OSError(errno.ENOSPC, "full")
        return put(handle, offset, data)

    with one.opened("/short", MAKE) as source, one.opened("/filled", MAKE) as target:
        one.vfs.write(source, 0, os.urandom(3 * PIECE_BYTES))
        monkeypatch.setattr(one.vfs, "_put", full)
        assert one.vfs.copy_range(source, 0, target, 0, 3 * PIECE_BYTES) == 2 * PIECE_BYTES
        fail_at = 0
        assert fails(lambda: one.vfs.copy_range(source, 0, target, 0, 10)) == "ENOSPC"


def test_what_is_copied_chunk_by_chunk_is_not_stored_again(shared_stack: Stack) -> None:
    wire, puts = WatchedWire(), list[str]()
    one = shared_stack.client(wrap=wire.wrap)
    content = os.urandom(2 * CHUNK + 1000)
    one.write("/stored", content)
    wire.before = lambda method, url: puts.extend([url] if method == "PUT" else [])
    with one.opened("/stored", READ) as source, one.opened("/named", MAKE) as target:
        assert one.vfs.copy_range(source, 0, target, CHUNK, len(content)) == len(content)
    assert puts == []
    assert shared_stack.client().read("/named") == bytes(CHUNK) + content
    with one.opened("/stored", READ) as source, one.opened("/named", WRITE) as target:
        one.vfs.copy_range(source, CHUNK, target, 0, CHUNK)
        one.vfs.write(target, 5, b"changed afterwards")
        one.vfs.copy_range(source, 1, target, 2 * CHUNK, CHUNK)
    assert len(puts) == 2
    expected = bytearray(content[CHUNK : 2 * CHUNK] + content)
    expected[5:23], expected[2 * CHUNK : 3 * CHUNK] = b"changed afterwards", content[1 : CHUNK + 1]
    assert shared_stack.client().read("/named") == expected


def test_holes_take_no_space_and_programs_see_that(pair: tuple[Client, Client]) -> None:
    """cp, tar and du go by it: who finds no hole there reads every zero."""
    one, two = pair
    with one.opened("/far", MAKE) as handle:
        one.vfs.write(handle, 2**18 * CHUNK - 10, b"the end at 1 TiB")
        for _ in range(2):  # as it is dirty, and as it was committed
            attr = one.vfs.handle_attr(handle)
            assert attr.size == 2**18 * CHUNK + 6
            assert 0 < attr.stored_bytes <= 3 * CHUNK
            one.vfs.flush(handle)
        assert two.walk("/far", fresh=True).stored_bytes == 2 * CHUNK
        one.vfs.fallocate(handle, PUNCH_HOLE | KEEP_SIZE, 2**17 * CHUNK, 2**17 * CHUNK)
        one.vfs.write(handle, 5, b"near")
        one.vfs.flush(handle)
        assert two.walk("/far", fresh=True).stored_bytes == 2 * CHUNK
    with two.opened("/far", WRITE) as handle:
        two.vfs.write(handle, 2**18 * CHUNK, b"overwritten")
        assert two.vfs.handle_attr(handle).stored_bytes == 2 * CHUNK, "what is not here is somewhere else"


def test_a_file_that_is_not_here_has_no_holes_for_that(pair: tuple[Client, Client]) -> None:
    one, two = pair
    with one.opened("/full", MAKE) as handle:
        one.vfs.write(handle, 0, b"x" * (2 * CHUNK + 1))
    with two.opened("/full", WRITE) as handle:
        two.vfs.write(handle, 0, b"y")
        for _ in range(2):
            attr = two.vfs.handle_attr(handle)
            assert (attr.holes, attr.stored_bytes) == (0, attr.size)
            two.vfs.flush(handle)
