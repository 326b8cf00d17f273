"""Ways to speak FUSE, one module each: they translate calls and errors, and decide nothing."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a mount's keeper chooses, and needs nothing of what the worker then loads
    from mount.options import MountOptions
    from mount.owners import Owners
    from mount.vfs import Vfs

Serve = Callable[["Vfs", "MountOptions", "Owners", Callable[[bool], None]], None]
"""``serve`` of a binding; when it is ready it tells whether the kernel serves open files itself."""

AUTO, NATIVE, FUSEPY = "auto", "native", "fusepy"


def choose(wanted: str) -> str:
    """The binding for what ``dfs mount --binding`` says; "auto": the native one where there is /dev/fuse."""
    if wanted != AUTO:
        return wanted
    return NATIVE if sys.platform == "linux" and os.path.exists("/dev/fuse") else FUSEPY


def load(name: str) -> Serve:
    """``serve`` of a binding. Only the one that is used is imported: the other's library may be missing."""
    if name == NATIVE:
        from mount.bindings.native.serving import serve
    else:
        from mount.bindings.fusepy.serving import serve
    return serve
