"""A program of its own that does one thing after another, as it is told."""

import ast
import os
import subprocess
import sys
from typing import Self

_PROGRAM = """
import fcntl, mmap, os, signal, sys
for line in sys.stdin:
    try:
        answer = True, repr(eval(line))
    except OSError as error:
        answer = False, error.errno
    print(answer, flush=True)
"""


class Program:
    """Python expressions are evaluated in a process of its own: unlike the test's, it starts no processes, in
    which what it has open would be closed, and it can be killed. ``f := os.open(...)`` keeps a value."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def do(self, expression: str) -> str:
        """The ``repr`` of an expression's value. Raises OSError if it does."""
        self.begin(expression)
        return self.answer()

    def begin(self, expression: str) -> None:
        """Does not wait for the ``answer``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"({expression})\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Of what was begun last; as ``do``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program died"
        is_well, answer = ast.literal_eval(line)
        if not is_well:
            raise OSError(answer, os.strerror(answer))
        return str(answer)

    def end(self) -> None:
        """The program ends; what it has open is closed, and unmapped."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
