"""The binding that speaks the kernel's FUSE protocol itself, over /dev/fuse; for Linux."""

from mount.bindings.native.serving import serve

__all__ = ["serve"]
