"""``dfs up --detach``: the supervisor in a session of its own, and how it tells that it is ready.

The new process gets the writing end of a pipe. It writes one line, the realm's state or the problem,
and closes it; if it dies before, the pipe is empty.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from servers.supervision import RealmRoot, child_environment, python, tail
from servers.supervision_control import Told
from wire.errors import DfsError, from_problem, to_problem


def run_detached(root: RealmRoot, words: list[str]) -> Told:
    """Starts ``dfs up`` with ``words`` in the background and waits until the realm is ready. Raises what
    the other process could not do."""
    root.make()
    output = root.log("background")
    reading, writing = os.pipe()
    with output.open("wb") as log, open(reading, "rb") as lines:
        try:
            subprocess.Popen(
                [python(), "-m", "dfs", "up", "--root", str(root.path), *words, "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
                env=child_environment(),
            )
        finally:
            os.close(writing)
        line = lines.readline()
    if not line:
        raise DfsError(f"the supervisor did not start:\n{tail(output)}")
    told = msgspec.json.decode(line, type=Told)
    if told.problem is not None:
        raise from_problem(told.problem)
    return told


@contextmanager
def tell_readiness(descriptor: int) -> Iterator[Callable[[Told], None]]:
    """For the process in the background: a function that tells who waits that all is ready. What is raised
    in the block is told in its place."""
    with open(descriptor, "wb") as pipe:

        def tell(told: Told) -> None:
            if not pipe.closed:
                pipe.write(msgspec.json.encode(told) + b"\n")
                pipe.close()

        try:
            yield tell
        except OSError as error:
            tell(Told(problem=to_problem(error)))
            raise
