# GhostWire: `make test` proves it, `make bench` measures it.
#
#   GW_NATIVE=off|auto|require   without, with if possible, or only with the compiled packet core
#   PYTHON=python3.13            another interpreter            VENV=.venv313   another environment
#   make wheel ARCH=aarch64      a wheel for another architecture; packaging/cross-wheel says what that needs

PYTHON ?= python3
VENV ?= .venv
GW_NATIVE ?= auto
MACHINE := $(shell uname -m)
ARCH ?= $(MACHINE)
BIN := $(abspath $(VENV))/bin
SOURCES := $(shell find gw -name '*.py' -o -name '*.tcss') $(wildcard setup.py) pyproject.toml
STAMP := $(VENV)/installed-$(GW_NATIVE)
WHEEL := $(abspath $(VENV))/wheel
TESTS ?=

.PHONY: demo test test-long test-deps install lint format bench wheel generated lock clean

install: $(STAMP)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

# The package with its core, as a stranger gets it: built, not linked, so that tests see what is shipped. The wheel stays, for
# the tests of packaging. A wheel of a version that is there already is only installed by force.
$(STAMP): $(SOURCES) | $(VENV)/bin/python
	@rm -rf $(VENV)/installed-* $(WHEEL)
	GW_NATIVE=$(GW_NATIVE) $(BIN)/python -m pip wheel -q --no-deps -w $(WHEEL) .
	$(BIN)/python -m pip install -q --upgrade $(WHEEL)/*.whl
	$(BIN)/python -m pip install -q --force-reinstall --no-deps $(WHEEL)/*.whl
	@touch $@

$(VENV)/dev: pyproject.toml | $(STAMP)
	$(BIN)/python -m pip install -q --group dev
	@touch $@

# A whole mesh on this machine, in network namespaces (root, or a kernel with user namespaces).
demo: test-deps $(STAMP)
	$(BIN)/gw lab demo

test-deps:
	sh .ci/system-packages
	sh .ci/node-packages
	sh .ci/go-packages

# Real networks mostly wait: more files at a time than there are cores, the longest first (tests/conftest.py).
SIDE_BY_SIDE := -n 4 --dist loadfile --no-loadscope-reorder

# What is compiled is tested a second time as it is here: interpreted.
test: test-deps $(STAMP) $(VENV)/dev lint
	cd tests && $(BIN)/pytest unit sim cli tui -n 2 -q -m "not long" $(TESTS)
	cd tests && PYTHONPATH=$(CURDIR) $(BIN)/pytest unit/native unit/quic unit/relay -n 2 -q -m "not long" $(TESTS)
	cd tests && $(BIN)/pytest netns interop $(SIDE_BY_SIDE) --reruns 1 -m "not long" --durations=25 $(TESTS)

test-long: test-deps $(STAMP) $(VENV)/dev
	cd tests && $(BIN)/pytest . -m long --timeout 1800 $(TESTS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gw
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: test-deps $(STAMP) $(VENV)/dev
	$(BIN)/python -P bench/run.py

wheel: $(VENV)/dev
	$(if $(filter $(MACHINE),$(ARCH)),$(BIN)/python -m build --wheel,PYTHON=$(BIN)/python packaging/cross-wheel $(ARCH))
	@ls -1 dist/*.whl

# completions/ and man/ from the command line's own description; a test fails when they drift
generated: $(VENV)/dev
	$(BIN)/python -P packaging/generate.py

lock:
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header pyproject.toml -o packaging/requirements.lock

clean:
	rm -rf build dist *.egg-info $(VENV)
