# `make demo` and `make test` need Python, make and git; what they install is in constraints.txt.
# After the first run neither asks the network for anything until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than processors: many tests wait for processes of their own.
WORKERS ?= $(shell $(BIN)/python -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))")
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CODE := src tests benchmarks
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean

help:  ## Say what each target does.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## Set up .venv and tune the built-in model: two minutes.
	@$(BIN)/tunesmith train quickstart

test: $(VENV)/installed-test lint  ## Run everything that CI runs.
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(VENV)/installed-test  ## Check format, style and types.
	@$(BIN)/ruff format --check --quiet $(CODE)
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/mypy

docs: $(VENV)/installed  ## Write the pages that the program generates.
	@$(BIN)/tunesmith options --markdown > $(VENV)/options.md
	@mv $(VENV)/options.md docs/reference/options.md
	@$(BIN)/tunesmith options --compatibility > $(VENV)/compatibility.md
	@mv $(VENV)/compatibility.md docs/reference/compatibility.md

clean:  ## Remove .venv and every cache. Runs stay.
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# Editable, so that a changed source needs no second installation.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), with what the tests need; the first time takes a few minutes."
	@$(PIP) --editable '.[test]'
	@touch $(VENV)/installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tunesmith needs Python 3.11 or newer. Name one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
