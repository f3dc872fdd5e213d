# Every target works alone on a fresh clone: the environment is made first, from the hashed lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format faults docs lock experts clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { echo "mtv needs Python 3.11 or 3.12; point PYTHON at one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/uv pip sync --python $(BIN)/python --quiet --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(STAMP)  ## make .venv from the hashed lock

demo: $(STAMP)  ## run the whole pipeline on blocks: local services, real deployment, real worker
	$(BIN)/mtv demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## formatting, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

faults: $(STAMP)  ## the randomised kill tests at full length
	MTV_FAULT_ROUNDS=full $(BIN)/python -m pytest -m fault tests/fault --timeout 3600

docs: $(STAMP)  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

experts: $(STAMP)  ## train the blocks experts again (weights in mtv_core/blocks/weights)
	$(BIN)/python -m mtv_core.blocks.train_experts

lock: $(STAMP)  ## resolve pyproject.toml again into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --all-extras --upgrade pyproject.toml -o requirements.lock

clean:  ## stop the local services and remove the environment
	-@test -x $(BIN)/mtv && $(BIN)/mtv down
	rm -rf $(VENV) *.egg-info
