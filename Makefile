# make run    environment, pipeline, result table
# make test   environment, lint, type check, tests
# Both need Python 3.11 or later, git and make. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
ENVIRONMENT := .venv/.made-from-lock
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: run test lint slow environment clean

run: environment
	@tunetrail run

# Two workers, each with whole files, the longest first (tests/conftest.py).
# One hash seed, as stages have: workers share adapters, and PEFT writes a set of strings into them.
test: lint
	@PYTHONHASHSEED=0 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: environment
	@ruff check .
	@ruff format --check .
	@mypy

slow: environment
	@pytest -m "slow and not gpu"

environment: $(ENVIRONMENT)

# Made anew when the lock file or the list of packages changes, and only then.
$(ENVIRONMENT): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Tunetrail needs Python 3.11 or later; try: make run PYTHON=python3.12"; exit 3; }
	@echo "Making .venv from requirements.lock (2 GB, some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv .tunetrail
