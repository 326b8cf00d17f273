"""Processes in the background, each in a session of its own: the realm of ``dfs up --detach``, and mounts.

The new process gets the writing end of a pipe. It writes one line, that it is ready or what the problem is,
and closes it; if it dies before, the pipe is empty.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from servers.supervision import child_environment, python, tail
from servers.supervision_control import Told
from wire.errors import DfsError, Problem, from_problem, to_problem


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the process tells who has started it: that it is ready (``realm``: and how, if it is one), or
    the problem."""

    realm: Told | None = None
    problem: Problem | None = None


def start(words: Sequence[str], log: Path, folder: Path | None = None) -> Word:
    """Starts ``dfs`` with ``words`` in the background and waits until it is ready. It works in ``folder`` and
    what it prints is added to ``log``. Raises what it could not do."""
    reading, writing = os.pipe()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(reading, "rb") as lines:
        try:
            subprocess.Popen(
                [python(), "-m", "dfs", *words, "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                start_new_session=True,
                env=child_environment(),
                cwd=folder,
            )
        finally:
            os.close(writing)
            os.close(output)
        line = lines.readline()
    if not line:
        raise DfsError(f"`dfs {words[0]}` died in the background:\n{tail(log)}")
    word = msgspec.json.decode(line, type=Word)
    if word.problem is not None:
        raise from_problem(word.problem)
    return word


@contextmanager
def telling(descriptor: int) -> Iterator[Callable[[Word], None]]:
    """For the process in the background: a function that tells who waits that all is ready. What is raised
    in the block before is told in its place."""
    with open(descriptor, "wb") as pipe:

        def tell(word: Word) -> None:
            if not pipe.closed:
                pipe.write(msgspec.json.encode(word) + b"\n")
                pipe.close()

        try:
            yield tell
        except OSError as error:
            tell(Word(problem=to_problem(error)))
            raise
