# Two commands: `make demo` runs the three roles end to end, `make test` proves it.
# Both install what they need into virtual environments in this directory.

PYTHON ?= python3
VENV := .venv
ORACLE := .venv-oracle
BIN := $(VENV)/bin
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes
SOURCES := src tests bench scripts fuzz
FUZZ_SECONDS ?= 60

.PHONY: help demo test lint unit soak bench-broker bench-batching bench-serving bench-volume system system-tests fuzz wire docs lock clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

demo: system $(VENV)/demo.stamp ## Owner, broker, guest and client end to end, on this machine
	$(BIN)/sealserve demo $(DEMO_ARGS)

test: system-tests lint unit ## Everything CI checks: style, types, house rules, the whole test suite

lint: $(VENV)/dev.stamp ## Style, types and house rules
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/dev.stamp $(ORACLE)/oracle.stamp ## The test suite with coverage
	$(BIN)/pytest --cov --cov-report=term $(TEST_ARGS)

soak: system-tests $(VENV)/dev.stamp $(ORACLE)/oracle.stamp ## The same tests with every repetition in full: hours, not minutes
	SEALSERVE_SOAK=1 $(BIN)/pytest --no-cov --timeout=7200 $(TEST_ARGS)

bench-broker: $(VENV)/dev.stamp ## What a broker bears: releases/s, patience, memory, a flood
	$(BIN)/python bench/broker.py $(BENCH_ARGS)

bench-serving: $(VENV)/dev.stamp ## How far serving is from OpenVINO alone, requests/s, what loading does to the tail
	$(BIN)/python bench/serving.py $(BENCH_ARGS)

system: ## Check for the system packages; install them when run as root
	@PYTHON=$(PYTHON) scripts/system-packages.sh

system-tests:
	@PYTHON=$(PYTHON) scripts/system-packages.sh --tests

$(VENV)/demo.stamp: requirements/demo.txt pyproject.toml
	@echo "Installing the demo's Python packages into $(VENV) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -r requirements/demo.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements/build.txt
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/demo.stamp
	@echo "Installing the development tools into $(VENV) ..."
	$(BIN)/python $(PIP_INSTALL) -r requirements/dev.txt
	touch $@

$(ORACLE)/oracle.stamp: requirements/oracle.txt
	@echo "Installing TensorFlow, the tests' oracle, into $(ORACLE) (about 1.6 GB) ..."
	test -x $(ORACLE)/bin/python || $(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python $(PIP_INSTALL) -r requirements/oracle.txt
	touch $@

bench-batching: $(VENV)/dev.stamp ## What batching brings, and what it costs, at 1, 16 and 64 connections
	$(BIN)/python -m bench.batching $(BENCH_ARGS)

bench-volume: $(VENV)/dev.stamp ## How fast volumes are, beside the raw file, OpenSSL and qemu-storage-daemon (needs root)
	$(BIN)/python -m bench.volume $(BENCH_ARGS)

fuzz: $(VENV)/fuzz.stamp ## Fuzz every reader of input from outside, FUZZ_SECONDS each
	$(BIN)/python -m fuzz.run --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

$(VENV)/fuzz.stamp: requirements/fuzz.txt $(VENV)/dev.stamp
	$(BIN)/python $(PIP_INSTALL) -r requirements/fuzz.txt
	touch $@

wire: $(VENV)/dev.stamp ## Generate the message modules from the .proto files
	src/sealserve/wire/generate.sh $(abspath $(BIN)/python)

docs: $(VENV)/dev.stamp ## Write the references of commands and error codes from the source
	$(BIN)/python scripts/cli-reference.py docs/cli.md
	$(BIN)/python scripts/error-reference.py docs/errors.md

lock: ## Resolve and pin every dependency anew (needs uv)
	requirements/lock.sh

clean: ## Remove the virtual environments, caches and the demo's files
	rm -rf $(VENV) $(ORACLE) .sealserve-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
