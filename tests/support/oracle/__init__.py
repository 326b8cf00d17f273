"""Whatever programs do on two mounts in turn, a local directory does the same."""
