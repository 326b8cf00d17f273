"""The client: the file system (``vfs``), what it needs of the services (``proxy``), the FUSE bindings."""
