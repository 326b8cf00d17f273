"""Memory of processes that move chunks: what is freed is kept for the next chunk.

glibc gives large blocks back to the kernel as soon as they are freed, and a new one costs a fault for each
page. Where a virtual machine gives freed memory back to its host, a second fault there: on such a machine
1 GB of fresh pages took 1.5 to 1.9 s to touch, and 0.03 s once they were there.
"""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

KEPT_BYTES = 256 * 1024 * 1024
TOP_PAD_BYTES = 64 * 1024 * 1024
MMAP_BYTES = 32 * 1024 * 1024
"""The largest that mallopt(3) takes (HEAP_MAX / 2)."""


def keep_freed_memory() -> None:
    """To be called before there are threads. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TOP_PAD, TOP_PAD_BYTES)
        mallopt(_M_ARENA_MAX, 2)
