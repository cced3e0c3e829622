# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or later, make, git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-gpu lint bench bench-gpu aot clean

# The environment, made anew when what it should contain changes.
.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]'
	touch $@

# The main job: train on the built-in phrasebook, translate sentences never seen, score them.
demo: .venv/.made
	$(BIN)/python -m transformer_jax.main --config=configs/demo.py --workdir=runs/demo

test: .venv/.made
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu'

test-slow: .venv/.made
	$(BIN)/python -m pytest -m 'slow and not gpu'

lint: .venv/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Beside PyTorch, in an environment that has it; needs MULTI30K=folder of the corpus.
.venv-bench/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[benchmark]'
	touch $@

MULTI30K ?= multi30k
bench: .venv-bench/.made
	.venv-bench/bin/python -m experiments.benchmarks.train --path='$(MULTI30K)/{split}.{lang}'

# Where a GPU is. The environment has CUDA and PyTorch, 10 GB; a Python that has both, and what else
# pyproject.toml names, serves as well: make bench-gpu GPU_PYTHON=python3
GPU_PYTHON ?= .venv-gpu/bin/python
GPU_VENV := $(if $(filter .venv-gpu/%,$(GPU_PYTHON)),.venv-gpu/.made)
.venv-gpu/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[cuda,test,benchmark]'
	touch $@

# XLA_FLAGS: none, instead of what tests/conftest.py sets for a CPU. A kernel that hangs ends the run.
test-gpu: $(GPU_VENV)
	JAX_PLATFORMS=cuda XLA_FLAGS= PYTHONPATH=.:kernels $(GPU_PYTHON) -m pytest -m gpu -rs tests/kernels \
		-o faulthandler_timeout=180 -o faulthandler_exit_on_timeout=true

SECONDS ?= 500
bench-gpu: $(GPU_VENV)
	PYTHONPATH=.:kernels $(GPU_PYTHON) -m experiments.benchmarks.gpu --seconds=$(SECONDS)

# Compiles for nine GPUs and six TPUs, which need not be here; its environment is 5 GB.
.venv-aot/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[aot]'
	touch $@

aot: .venv-aot/.made
	.venv-aot/bin/python -m experiments.ahead_of_time

clean:
	rm -rf .venv .venv-aot .venv-bench .venv-gpu runs
