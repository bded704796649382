# Every target creates the virtual environment and installs what it needs on first use; after that it starts at once.
#
#   make train                      train an agent and compare it with every rule     (ARGS="--algo sac" passes options on)
#   make bench ARGS=--quick         a quick look at speed; --write puts the figures into docs/performance.md
#   make test                       run the tests                                      (ARGS="-k levers" passes options on)
#   make train TORCH=torch          let pip choose the build of torch (a CUDA one on most Linux machines)
#   make test PYTHON=python3.12     choose the interpreter of a new virtual environment

PYTHON ?= python3
VENV ?= .venv
# An exact version, so that no multi-gigabyte CUDA build is pulled where a CPU build is offered.
TORCH ?= torch==2.13.0
# Test processes; 2 is what continuous integration has.
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Small networks: a second BLAS thread costs more than it brings as soon as anything else runs.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.DELETE_ON_ERROR:
.PHONY: help train test lint format bench docs-tables install install-train clean FORCE

help:
	@echo "make train        train an agent on the Edge site, then compare it with every rule on held-out seeds"
	@echo "make test         run the tests"
	@echo "make lint         ruff check, ruff format --check, mypy"
	@echo "make format       let ruff format and sort the sources"
	@echo "make bench        measure speed and memory beside CartPole"
	@echo "make docs-tables  regenerate every table that the documentation shows"
	@echo "make install      install the package, editable, with all extras into $(VENV)"
	@echo "make clean        remove the virtual environment and the caches"

train: install-train
	$(BIN)/python -m ai_factory_gym warmup
	$(BIN)/python train.py $(ARGS)

test: install
	$(BIN)/python -m ai_factory_gym warmup
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install-train
	$(BIN)/python benchmarks/performance.py $(ARGS)

# Each script in docs/tables writes one table of the documentation.
docs-tables: install
	@set -e; for script in $(sort $(wildcard docs/tables/*.py)); do echo "$$script"; $(BIN)/python $$script $(ARGS); done

install: $(VENV)/.installed-dev
install-train: $(VENV)/.installed-train

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Rewritten only when the value differs, so that `make TORCH=...` reinstalls torch and nothing else does.
$(VENV)/.torch-wanted: FORCE | $(BIN)/python
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/.installed-torch: $(VENV)/.torch-wanted
	$(PIP) install '$(TORCH)'
	@touch $@

$(VENV)/.installed-train: pyproject.toml $(VENV)/.installed-torch
	$(PIP) install -e '.[train,plot]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed-train
	$(PIP) install -e '.[train,plot,ray,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find envs agents baselines benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
