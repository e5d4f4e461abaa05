# Every target builds .venv first if it has to. Needed: python3 (3.10 or newer) with venv, make, git.
#   make demo PY=python3.12     with another Python
#   make test BOOTSTRAP=pip     install with pip instead of uv
#   make test ARGS='-k canvas'  more words for pytest (or for the benchmarks)

PY ?= python3
ARGS ?=
BIN := .venv/bin
MEMBERS := core/pyproject.toml $(wildcard plugins/*/*/pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench services constraints clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.stamp ## a worker and a few hundred real tasks, with no server at all
	@$(BIN)/python examples/demo/demo.py

test: .venv/.stamp services ## the whole suite, on real private servers
	$(BIN)/python -m pytest -rfEs -n 3 --dist loadgroup $(ARGS)

lint: .venv/.stamp ## ruff, mypy --strict, the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house/test_members.py

bench: .venv/.stamp ## celeriac beside other task queues, on this machine
	$(BIN)/python benchmarks/run.py $(ARGS)

services: ## the servers the tests use, as Debian packages (needs root; CELERIAC_INSTALL_SERVICES=0 forbids)
	@$(PY) scripts/services.py

constraints: .venv/.stamp ## the newest versions of all dependencies, into constraints.txt
	@$(BIN)/python scripts/constraints.py

clean: ## remove .venv and everything that tools left behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp: constraints.txt pyproject.toml $(MEMBERS) scripts/bootstrap.py
	@$(PY) scripts/bootstrap.py
