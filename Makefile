# `make` lists what you can do. Every target makes its virtual environment first, and again when pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
DSN ?=
# The dependency groups in the environment; the tests alone need GROUPS=test.
GROUPS ?= test lint bench
# Further requirements for the environment, such as REQUIRE="SQLAlchemy<2.1 Django<6".
REQUIRE ?=
# Further arguments for pytest, such as ARGS='-x tests/core'.
ARGS ?=
# How many processes run the tests; 0 runs them in this one, for a debugger or to see what they print.
# One for each core, but the 100 connections of a server that OUTBOX_TEST_POSTGRES names are not for more than four.
PROCESSES ?= auto --maxprocesses 4

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(READY) ## Run two examples while their workers are killed; DSN=postgresql+asyncpg://… for PostgreSQL
	$(BIN)/python docs/examples/orders/demo.py --dsn '$(DSN)'
	@echo; echo 'Django and FastAPI on one outbox table:'
	$(BIN)/python docs/examples/shop/demo.py --dsn '$(DSN)'

.PHONY: test
test: $(READY) ## Run the whole suite, a process for each core; OUTBOX_TEST_POSTGRES names a server, otherwise it brings its own
	$(BIN)/python -m pytest -n $(PROCESSES) $(ARGS)

.PHONY: test-fast
test-fast: $(READY) ## Run what needs no server: the core, and the contract on memory and SQLite
	$(BIN)/python -m pytest tests/core tests/contract -k 'not postgres and not asyncpg and not psycopg' -n $(PROCESSES) $(ARGS)

.PHONY: faults
faults: $(READY) ## Run the fault campaign at full length, an hour or more; ARGS='--list', '--short', or names of scenarios
	$(BIN)/python -m tests.crash $(ARGS)

.PHONY: check
check: lint test smoke ## Run what CI runs: lint, the suite, the benchmarks' smoke run

.PHONY: lint
lint: $(READY) ## Check format, style, import rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright -p tests/typing --pythonpath $(BIN)/python

.PHONY: bench
bench: $(READY) ## Measure publishing and draining, as ratios
	$(BIN)/python -m tests.benchmarks

.PHONY: smoke
smoke: $(READY) ## Run the benchmarks with tiny numbers, to see that they run
	$(BIN)/python -m tests.benchmarks --smoke

.PHONY: format
format: $(READY) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove environments, caches and builds
	rm -rf .venv .venvs dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[sqlalchemy,asyncpg,psycopg,sqlite,django,fastapi]' \
		$(addprefix --group ,$(GROUPS)) $(foreach one,$(REQUIRE),'$(one)')
	@touch $@
