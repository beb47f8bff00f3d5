# Every target sets up what it needs: a virtual environment in .venv, the pinned packages, this package itself.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
FOLDER ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install test lint quickstart clean

help:
	@echo "make quickstart   train a tiny vision-language model and see it improve (offline, CPU, minutes; SEED=0 FOLDER=runs/...)"
	@echo "make test         the test suite (offline, CPU)"
	@echo "make lint         ruff and mypy"
	@echo "make install      only the set-up"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)

# The clock of the quickstart starts before the set-up, so that the seconds it prints are those a newcomer waits.
quickstart: export STARTED := $(shell date +%s)
quickstart: $(STAMP)
	$(BIN)/gpg-vl quickstart --seed $(SEED) --folder $(FOLDER) --since $$STARTED

test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
