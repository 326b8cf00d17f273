"""The binding that speaks the kernel's FUSE protocol itself, over /dev/fuse; for Linux.

``serving`` begins it. Nothing is imported here: a mount's keeper wants ``device`` alone.
"""
