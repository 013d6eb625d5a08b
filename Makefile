# Two commands do everything on a fresh machine: `make tune` and `make test`.
VENV ?= .venv
BIN := $(VENV)/bin
# Qwen3-30B-A3B at tensor parallel 2: E experts, N intermediate columns per GPU, K hidden size, topk experts a token.
SHAPE ?= E=128,N=384,K=2048,topk=8
# The GPU a table is predicted for where none is present: one whose family has no measured table, which would outrank it.
DEVICE ?= rtx-pro-6000-server
TUNE_ARGS ?=
PYTEST_ARGS ?=

.PHONY: env tune test lint format bench clean help

help:  ## what the targets do
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## set up .venv; does nothing when it is up to date
	@scripts/setup-env.sh $(VENV)

tune: env  ## tune an example model: on the GPU if there is one, else predict for DEVICE
	@BIN=$(BIN) SHAPE='$(SHAPE)' DEVICE='$(DEVICE)' scripts/tune-example.sh $(TUNE_ARGS)

test: env  ## run the tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: env  ## ruff, mypy, import-linter
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache

format: env  ## let ruff rewrite the files
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

bench: env  ## the cost of a decision (the kernels': see docs/benchmarks.md)
	@$(BIN)/python benchmarks/bench_select.py

clean:  ## remove the environment and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
