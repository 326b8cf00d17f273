"""make and a C compiler: what was built is not built again, what has changed is, whoever built it first."""

import os
from pathlib import Path

from tests.programs.sides import Sides, need

pytestmark = need("make", "cc", "ar")

PARTS = 8
MAKEFILE = """
CFLAGS := -O1
PARTS := $(patsubst %.c,%.o,$(wildcard part-*.c))

program: main.o libparts.a
	@echo LINK $@
	@$(CC) -o $@ main.o -L. -lparts

libparts.a: $(PARTS)
	@echo AR $@
	@$(AR) rcD $@ $?

%.o: %.c
	@echo CC $@
	@$(CC) $(CFLAGS) -MMD -c -o $@ $<

-include $(wildcard *.d)
"""


def source(folder: Path) -> None:
    """A program of eight parts, each with a header."""
    (folder / "Makefile").write_text(MAKEFILE)
    for number in range(PARTS):
        (folder / f"part-{number}.h").write_text(f"int part_{number}(void);\n")
        text = f'#include "part-{number}.h"\nint part_{number}(void) {{ return {number}; }}\n'
        (folder / f"part-{number}.c").write_text(text)
    includes = "".join(f'#include "part-{number}.h"\n' for number in range(PARTS))
    calls = " + ".join(f"part_{number}()" for number in range(PARTS))
    text = f'#include <stdio.h>\n{includes}int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    (folder / "main.c").write_text(text)


def build(sides: Sides) -> list[str]:
    """What was made, in any order."""
    return sorted(sides.shell("make -j 4 | sort").splitlines())


def test_make_of_a_c_program(sides: Sides) -> None:
    sides.do(source)
    everything = ["AR libparts.a", "CC main.o", *(f"CC part-{n}.o" for n in range(PARTS)), "LINK program"]
    nothing = ["make: 'program' is up to date."]
    assert build(sides) == everything
    assert build(sides) == nothing
    assert build(sides) == nothing, "nor on the other mount"
    assert sides.run("./program") == "28\n"

    sides.do(
        lambda here: (here / "part-3.c").write_text('#include "part-3.h"\nint part_3(void) { return 30; }\n')
    )
    assert build(sides) == ["AR libparts.a", "CC part-3.o", "LINK program"]
    assert sides.run("./program") == "55\n"
    sides.do(lambda here: os.utime(here / "part-5.h"))
    assert build(sides) == ["AR libparts.a", "CC main.o", "CC part-5.o", "LINK program"]
    assert build(sides) == nothing
    sides.check("mtime", skipped={"main.o", "program"})


def test_times_order_what_was_made(sides: Sides) -> None:
    """Each is made after the other, and says so, to the nanosecond, on both mounts."""
    one, two = sides.mounts
    for number in range(20):
        (sides.mounts[number % 2] / f"file-{number}").write_text("made")
    for mount in (one, two):
        times = [(mount / f"file-{number}").stat().st_mtime_ns for number in range(20)]
        assert times == sorted(set(times))
