"""What is spoken over /dev/fuse, against the system's own header; and how it begins."""

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mount.bindings.native import protocol
from mount.bindings.native.protocol import Fattr, Fopen, Init, InitIn, Notify, Opcode, Structure
from mount.bindings.native.serving import agree, read_init
from tests.support.kernel import request

HEADER = Path("/usr/include/linux/fuse.h")

NEWER = {
    "FUSE_STATX": (52, "6.6"),
    "FUSE_COPY_FILE_RANGE_64": (53, "6.18"),
    "FUSE_NOTIFY_RESEND": (7, "6.9"),
    "FUSE_NOTIFY_INC_EPOCH": (8, "6.16"),
    "FUSE_DIRECT_IO_ALLOW_MMAP": (1 << 36, "6.6"),
    "FUSE_HAS_RESEND": (1 << 39, "6.9"),
    "FUSE_UNIQUE_RESEND": (1 << 63, "6.9"),
    "FUSE_PASSTHROUGH": (1 << 37, "6.9"),
    "FOPEN_PASSTHROUGH": (1 << 7, "6.9"),
}
"""What the header may be too old for: the number, and the first Linux that has it."""

NEWER_SIZES = {
    "fuse_statx_in": (24, "6.6"),
    "fuse_statx_out": (288, "6.6"),
    "fuse_copy_file_range_out": (8, "6.18"),
    "fuse_backing_map": (16, "6.9"),
}
"""The same of structures, in bytes."""

COMPOSED = {
    "fuse_attr_out": protocol.ATTR_OUT.size + protocol.ATTR.size,
    "fuse_entry_out": protocol.ENTRY_OUT.size + protocol.ATTR.size,
    "fuse_direntplus": protocol.ENTRY_OUT.size + protocol.ATTR.size + protocol.DIRENT.size,
}
"""Structures that are put together of several of ours."""

RENAMED = {"fuse_init_in", "fuse_init_out", "fuse_lk_in", "fuse_lk_out", "fuse_open_out", "fuse_statx_out"}
"""Of which fields have got other names since, or have names of ours."""

WIDTHS = {"uint64_t": 8, "int64_t": 8, "uint32_t": 4, "int32_t": 4, "uint16_t": 2, "char": 0}

needs_header = pytest.mark.skipif(not HEADER.exists(), reason="there is no <linux/fuse.h>")


class Field(NamedTuple):
    """One line of a structure."""

    kind: str
    name: str
    length: str


class Header:
    """<linux/fuse.h>, as far as it is needed."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        plain = re.findall(r"^#define\s+(\w+)\s+(\d+)\s*$", text, re.MULTILINE)
        bits = re.findall(r"^#define\s+(\w+)\s+\(1(?:ULL|ull)?\s*<<\s*(\d+)\)\s*$", text, re.MULTILINE)
        listed = re.findall(r"^\s+(\w+)\s*=\s*(\d+),", text, re.MULTILINE)
        self.numbers = {name: int(value) for name, value in plain + listed}
        self.numbers |= {name: 1 << int(bit) for name, bit in bits}
        self.fields = {
            name: [Field(*field) for field in re.findall(r"(\w+)\s+(\w+)(?:\[(\d*)\])?;", body)]
            for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.MULTILINE | re.DOTALL)
        }

    def size(self, kind: str) -> int:
        """In bytes."""
        if kind in WIDTHS:
            return WIDTHS[kind]
        return sum(self.size(field.kind) * int(field.length or 1) for field in self.fields[kind])


@pytest.fixture(scope="module")
def header() -> Header:
    """The one of this system."""
    return Header(HEADER.read_text())


def structures() -> list[Structure[Any]]:
    """Those of ours that are whole ones of the header."""
    found = [value for value in vars(protocol).values() if isinstance(value, Structure)]
    return [structure for structure in found if " " not in structure.name]


@needs_header
@pytest.mark.parametrize("structure", structures(), ids=lambda structure: structure.name)
def test_structures_are_those_of_the_header(structure: Structure[Any], header: Header) -> None:
    fields = header.fields.get(structure.name)
    if fields is None:
        assert structure.size == NEWER_SIZES[structure.name][0]
        return
    assert structure.size == header.size(structure.name)
    if structure.name not in RENAMED:
        ours = [name.rstrip("_") for name in vars(structure.kind)["_fields"]]
        assert ours == [field.name for field in fields if not field.length and field.kind != "char"]


@needs_header
def test_what_is_put_together_of_several_structures(header: Header) -> None:
    assert {name: header.size(name) for name in COMPOSED} == COMPOSED


@needs_header
@pytest.mark.parametrize(
    ("prefix", "numbers"),
    [("FUSE_", Opcode), ("FUSE_", Init), ("FOPEN_", Fopen), ("FATTR_", Fattr), ("FUSE_NOTIFY_", Notify)],
)
def test_numbers_are_those_of_the_header(prefix: str, numbers: Any, header: Header) -> None:
    known = {name: value for name, (value, _) in NEWER.items()} | header.numbers
    for number in numbers:
        assert known[prefix + number.name] == number, number


@needs_header
def test_other_numbers(header: Header) -> None:
    assert header.numbers["FUSE_ROOT_ID"] == protocol.ROOT_ID
    assert header.numbers["FUSE_GETATTR_FH"] == protocol.GETATTR_FH
    assert header.numbers["FUSE_KERNEL_VERSION"] == protocol.MAJOR
    assert header.numbers["FUSE_MIN_READ_BUFFER"] == protocol.MIN_READ_BUFFER
    assert header.numbers["FUSE_WRITE_CACHE"] == protocol.WRITE_CACHE
    assert header.numbers["FUSE_WRITE_KILL_SUIDGID"] == protocol.WRITE_KILL_SUIDGID


# The beginning


def test_only_what_the_kernel_offers_is_asked_for() -> None:
    offered = Init.ASYNC_READ | Init.MAX_PAGES | Init.INIT_EXT
    answer = agree(InitIn(7, 36, 131072, int(offered) | 1 << 16, 0))
    assert (answer.minor, answer.flags, answer.flags2) == (36, offered, 0)
    everything = agree(InitIn(7, 99, 131072, 0xFFFFFFFF, 0xFFFFFFFF))
    assert everything.minor == protocol.MINOR
    assert everything.flags2 << 32 == Init.DIRECT_IO_ALLOW_MMAP | Init.PASSTHROUGH


def test_without_init_ext_the_second_flags_mean_nothing() -> None:
    assert agree(InitIn(7, 31, 0, 0, 0xFFFFFFFF)).flags2 == 0


def test_a_kernel_that_is_too_old_is_told() -> None:
    with pytest.raises(OSError, match=r"7\.23"):
        agree(InitIn(7, 23, 0, 0, 0))


@pytest.mark.parametrize("length", [16, 64])
def test_both_lengths_of_init_are_read(length: int) -> None:
    body = struct.pack("=IIII", 7, 31, 4096, 8).ljust(length, b"\0")
    assert read_init(request(Opcode.INIT, body, 5)) == (5, InitIn(7, 31, 4096, 8, 0))


def test_another_beginning_is_refused() -> None:
    with pytest.raises(protocol.Malformed):
        read_init(request(Opcode.LOOKUP, b"name\0"))
