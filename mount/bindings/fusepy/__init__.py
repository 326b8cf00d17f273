"""The portable binding: libfuse's path interface through mfusepy.

libfuse calls with paths, the Vfs wants inodes: a path is walked through what the Vfs believes of names,
and through the directory itself where it matters (open). The kernel may believe a name for a second,
but attributes not at all: a file that grew elsewhere would otherwise be cut off at its old size by the
first reader. Its pages of a file are kept over an open only when they are of the version that is opened;
libfuse gives every hard link an inode of its own in the kernel, so that is remembered by path.

``serving`` begins it. ``bridge`` is what libfuse calls; it has what is needed from the operations, which are
in ``names``, ``attributes``, ``directories``, ``files`` and ``locks``.
"""
