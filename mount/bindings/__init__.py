"""Ways to speak FUSE, one module each: they translate calls and errors, and decide nothing."""
