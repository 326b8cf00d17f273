"""Two clients want to write the same file: the second one waits, and then goes on from what the first wrote.

How to run it::

    dfs up --detach
    dfs signup && dfs login
    mkdir one two && dfs mount one && dfs mount two
    python examples/two_clients_and_a_lock.py one two

The two mounts have a session each, so they are two clients, as on two machines. Each is used by a process of
its own, which knows nothing of DFS: it calls ``open``, ``read``, ``write``, ``close``.

What is to be seen: both add one to a number in a file, ten times, and think for a moment in between. No
addition is lost, because opening for writing takes the file's lock: a process waits in ``open`` until the
other one has closed the file, and then reads what that one wrote. Meanwhile a reader never waits for them.
"""

import multiprocessing
import sys
import time
from pathlib import Path

NAME = "number.txt"
ADDITIONS = 10
THINK_SECONDS = 0.05


def add(mountpoint: Path) -> None:
    """Adds one to the number in the file, ten times."""
    path = mountpoint / NAME
    for _ in range(ADDITIONS):
        begin = time.monotonic()
        with path.open("r+") as file:
            waited = time.monotonic() - begin
            number = int(file.read())
            time.sleep(THINK_SECONDS)
            file.seek(0)
            file.write(str(number + 1))
        print(f"{mountpoint}: waited {waited:.2f} s for the lock, made {number + 1} of {number}", flush=True)


def main() -> None:
    """Starts a writer on each mount, reads while they work, and looks at the result."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} MOUNTPOINT MOUNTPOINT")
    mountpoints = [Path(argument) for argument in sys.argv[1:]]
    path = mountpoints[0] / NAME
    path.write_text("0")
    writers = [multiprocessing.Process(target=add, args=(mountpoint,)) for mountpoint in mountpoints]
    for writer in writers:
        writer.start()
    slowest = 0.0
    while any(writer.is_alive() for writer in writers):
        begin = time.monotonic()
        path.read_text()
        slowest = max(slowest, time.monotonic() - begin)
        time.sleep(THINK_SECONDS)
    print(f"the number is {path.read_text()}; it should be {2 * ADDITIONS}")
    print(f"the slowest of the reads meanwhile took {slowest:.2f} s")
    path.unlink()


if __name__ == "__main__":
    main()
