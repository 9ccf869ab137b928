# The two commands a new user needs are `make run` and `make test`. Each makes .venv if it is missing, installs
# the pinned dependencies and the project, and compiles the native parts with the ziglang wheel: a system
# compiler is not used.
#
#   make run         a live update of the project's own kernels, from release old to release new, verified
#   make test        lint, then all tests but the long ones
#   make test-linux  build the reference Linux (kept and reused), then the tests that run it
#   make campaign    long runs: mutation and slicing campaigns
#   make bench       benchmarks
#   make lint        ruff and mypy alone
#   make clean       remove what was built, .venv included
#
# PYTHON=python3.12 chooses the interpreter for a new .venv; PYTEST_ARGS="-k name" goes to pytest.

PYTHON ?= python3
PYTEST_ARGS ?=

# Paths here are relative, so that the tree may be in a directory whose name has spaces.
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
NATIVE := $(wildcard kernels/*.py emu/native/*.[ch] kernels/*/*.[chS] kernels/selftest/* kernels/*.S kho/guest/* \
	luo/guest/*)

.PHONY: run test test-linux campaign bench lint install clean
.DELETE_ON_ERROR:

run: install
	$(PY) -m emu run

test: lint
	$(PY) -m pytest $(PYTEST_ARGS)

test-linux: install
	$(PY) -m tests.linux.build
	$(PY) -m pytest -m "linux and not campaign" $(PYTEST_ARGS)

campaign: install
	$(PY) -m pytest -m campaign $(PYTEST_ARGS)

bench: install
	$(PY) -m benchmarks

lint: install
	$(PY) -m ruff check
	$(PY) -m mypy

install: $(VENV)/.installed $(VENV)/.built

$(VENV)/.installed: pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'luemu needs Python 3.11 or newer; "$(PYTHON)" is missing or older.' \
			'Try: make PYTHON=python3.12 (or another that you have)' >&2; exit 1; }
	@# without pip it is what an interrupted run left
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); \
		echo 'Making .venv failed. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'The Python of .venv is gone or older than 3.11. Remove it: make clean' >&2; exit 1; }
	@echo 'Installing the pinned dependencies into .venv'
	@$(PIP) $$($(PY) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	@$(PY) -m kernels.build
	@touch $@

clean:
	rm -rf $(VENV) build dist kernels/bin emu/native/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
