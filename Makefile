# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or later, make, git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench aot clean

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
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: .venv/.made
	$(BIN)/python -m pytest -m slow

lint: .venv/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs the extra `benchmark`, and MULTI30K=folder of the corpus.
MULTI30K ?= multi30k
bench: .venv/.made
	$(BIN)/python -m experiments.benchmarks.train --path='$(MULTI30K)/{split}.{lang}'

# Compiles everything for an H200 and for TPUs, which need not be here; its environment is 5 GB.
.venv-aot/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[aot]'
	touch $@

aot: .venv-aot/.made
	.venv-aot/bin/python -m experiments.ahead_of_time

clean:
	rm -rf .venv .venv-aot runs
