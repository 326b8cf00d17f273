"""The version of DFS, in one place: setup.cfg reads it too."""

VERSION = "0.1.0"
