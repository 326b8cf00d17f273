"""Memory that is free inside the process goes back to the system.

What the C library has freed it keeps (``dfs.memory`` has it keep much, for chunks). That is right for some
seconds, and wrong when tables of a million inodes have become empty: that room is in pieces between what is
left. After `ls -lR` of a million names, and when the kernel had forgotten them, that was 131 of 282 MB.
"""

import ctypes


def give_back() -> None:
    """Takes some milliseconds for each 100 MB. Does nothing where the C library is not glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
