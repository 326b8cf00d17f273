"""Memory of processes that move chunks: what is freed is kept for the next chunk.

glibc gives large blocks back to the kernel as soon as they are freed, and each new one costs a fault a
page. Measured once with these settings in the environment, a cold read went from about 200 to 270-370 MB/s;
later runs of the same read spread over 170-340 MB/s, so how much of it is due to them is not certain.
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
