# Everything a checkout can do, each target with its own set-up.
#
#   make setup                       only make the environment that the others use
#   make quickstart                  train a small model on medical text, with or without a GPU
#   make test                        all tests; TESTS="tests/data -k order" for some
#   make test-faults                 kills, hangs, full disks, damaged files, bad numbers: the long form
#   make check                       linters, types, import floors
#   make bench                       benchmarks
#   make bench-data                  those of building and reading shards, beside others where they are installed
#   make debug                       train a tiny random model on two CPU processes, in seconds
#
#   VENV=path                        use this environment instead of .venv
#   PYTHON=python3.12                the Python to make it with
#   TORCH="torch==2.12.1"            another torch; TORCH=torch keeps the one that VENV has. On Linux the package index
#                                    serves the CUDA build; the smaller one for CPUs alone:
#                                    TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
TESTS ?=

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
# Without bytecode every process compiles the sources of torch and transformers anew: some ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

# The stamp's name is a digest of what the environment was made from, so a change makes it anew.
CONSTRAINTS := requirements/constraints.txt
STAMP := $(VENV)/.megacpt-$(shell { echo "$(CURDIR) $(TORCH)"; cat setup.py $(CONSTRAINTS); } | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-faults check bench bench-data debug clean

help:
	@sed -n 's/^#   \?//p' Makefile | head -n 16

setup: $(STAMP)

quickstart: $(STAMP)
	@megacpt quickstart

test: $(STAMP)
	@python -m pytest $(TESTS)

test-faults: $(STAMP)
	@python -m pytest tests/faults tests/parity/test_reshape.py -m "slow or not slow" $(TESTS)

check: $(STAMP)
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-cache

bench: $(STAMP)
	@megacpt quickstart --prepare-only
	@set -e; for benchmark in benchmarks/*.py kernels/benchmarks/*.py; do echo "== $$benchmark"; python $$benchmark; done

bench-data: $(STAMP)
	@megacpt quickstart --prepare-only
	@python benchmarks/stream.py
	@set -e; for tokenizer in smollm2 llama3 sentencepiece mistral unigram_model unigram wordpiece; do python benchmarks/shard_builder.py --tokenizer $$tokenizer; done

debug: $(STAMP)
	@rm -rf runs/debug-tiny
	@megacpt debug-data
	@DS_ACCELERATOR=cpu deepspeed --quiet --num_gpus 2 megacpt/train.py --recipe debug-tiny

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@echo "Left alone: $(VENV), .cache (downloads) and runs."

# Ninja comes with the Python packages; a compiler and Python's headers have to be there.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "megacpt needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@command -v g++ >/dev/null || { \
	  echo "g++ is missing. DeepSpeed compiles its collectives for CPUs with it, when first used."; \
	  echo "Debian and Ubuntu: apt-get install g++    Fedora: dnf install gcc-c++    conda: conda install gxx"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("include"), "Python.h").stat()' 2>/dev/null || { \
	  echo "Python's headers (Python.h) are missing; DeepSpeed's extensions are compiled against them."; \
	  echo "Debian and Ubuntu: apt-get install python3-dev    Fedora: dnf install python3-devel"; exit 1; }
	@echo "Setting up $(VENV): $(TORCH) and what $(CONSTRAINTS) names; this takes minutes, once."
	@pip install --quiet --no-compile $(TORCH)
	@pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable '.[dev,quickstart]'
	@ninja --version >/dev/null || { \
	  echo "ninja is missing though its package is installed; try: pip install --force-reinstall ninja"; exit 1; }
	@echo "Compiling DeepSpeed's collectives for CPUs (once, about a minute)."
	@log=$$(mktemp) && { DS_ACCELERATOR=cpu python -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()' \
	  >$$log 2>&1 || { cat $$log; exit 1; }; rm -f $$log; }
	@rm -f $(VENV)/.megacpt-*
	@touch $@
