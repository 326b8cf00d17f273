# make run    shows DFS on this machine: a realm, mounts, what happens when things die
# make test   checks everything, as .ci/run does
#
# Both set up what they need in .venv, and again only when setup.cfg or pyproject.toml has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# Four modules of tests at a time, also on two cores: most of them wait half of their time, for disks, for leases,
# for what they have stopped to come back. The long ones come first (see tests/conftest.py).
AT_ONCE := --numprocesses 4 --dist loadfile --no-loadscope-reorder

# Else each of the many processes that the tests start would compile DFS anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test fuse clean

run: $(VENV)/installed fuse
	$(BIN)/dfs demo

test: $(VENV)/installed-dev fuse
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(AT_ONCE)

# What the file system needs of the machine: libfuse 3 and fusermount3.
fuse:
	@command -v fusermount3 >/dev/null || { $(call apt,fuse3); }

$(VENV)/installed: $(BIN)/python setup.cfg pyproject.toml
	$(PIP) install --editable .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python setup.cfg pyproject.toml
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'DFS needs Python 3.11 or later; say where it is: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call apt,python3-venv); }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Installs a Debian package if we may; else says which one is missing.
apt = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); \
	else \
	    echo 'DFS needs the package $(1) here; install it and try again.' >&2; exit 1; \
	fi
