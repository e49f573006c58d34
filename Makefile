# One environment (.venv, made here and reused), seven commands:
#   make demo       every stage on synthetic proteins, to demo_output/report.html
#   make test       every test
#   make test-fast  those that take seconds
#   make test-kill  every command that writes killed at random (KILLS=50), on full disks, with silent peers
#   make fuzz       every command with damaged inputs: MINUTES=10 SEED=0
#   make lint       ruff: checks and format
#   make bench      the comparisons of benchmarks/
# Needs python3 (3.11 or newer, with venv) and nothing else. Another interpreter: make PYTHON=/path/to/python test

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# Files with slow tests start first (tests/conftest.py); a file's tests share their fixtures, so a file stays in one
# process. Hundreds of processes are started, which are not to compile the project's files each.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-kill fuzz lint bench

help:
	@sed -n '2,8s/^# *//p' Makefile

# The demo writes to a new folder; what an earlier run left is removed.
demo: $(READY)
	@[ -n "$(ARGS)" ] || rm -rf demo_output
	$(BIN)/python -m demo.run $(ARGS)

test: $(READY)
	$(PYTEST) $(ARGS)

test-fast: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

test-kill: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_harness.py --kills $(or $(KILLS),50) $(ARGS)

fuzz: $(READY)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0) \
		$(if $(CASE),--case $(CASE)) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python benchmarks/preprocess.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/contact_memory.py

# The stamp is written last, so an install that was cut off is done again; a changed pyproject.toml installs again in place.
# Python 3.11 and 3.12 are the versions the tests have seen: a newer python3 is taken only where neither is found.
$(READY): pyproject.toml setup.py
	@set -e; \
	usable() { "$$1" -c "import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$2))" 2>/dev/null; }; \
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
		python="$(PYTHON)"; \
		for choice in python3:12 python3.12:12 python3.11:12 python3:99; do \
			[ -z "$$python" ] && usable "$${choice%:*}" "$${choice#*:}" && python="$${choice%:*}"; \
		done; \
		[ -n "$$python" ] || { echo "make: found no python3 of version 3.11 or newer with the venv module" \
			"(Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }; \
		echo "making $(VENV) with $$python ($$("$$python" --version))"; \
		"$$python" -m venv --clear $(VENV); \
	fi; \
	echo "installing into $(VENV) (the first time takes minutes)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'; \
	touch $@
