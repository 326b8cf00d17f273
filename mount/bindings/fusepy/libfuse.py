"""Finds libfuse before mfusepy does: it would take libfuse 2 where both are installed."""

import ctypes
import errno
import os

LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3", "libfuse.so.2")


def _choose() -> str:
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise OSError(errno.ENOENT, "libfuse is not installed (on Debian: apt-get install fuse3)")


os.environ.setdefault("FUSE_LIBRARY_PATH", _choose())

import mfusepy  # noqa: E402  (it loads the library when it is imported)

__all__ = ["mfusepy"]
