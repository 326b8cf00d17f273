"""fallocate(2), which Python has not."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(descriptor: int, mode: int, offset: int, size: int) -> None:
    """Raises OSError."""
    if _libc.fallocate(descriptor, mode, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
