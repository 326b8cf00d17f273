"""``python -m dfs`` is the ``dfs`` command."""

from dfs.main import main

main()
