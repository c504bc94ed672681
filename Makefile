# On a fresh machine `make train` and `make test` set up .venv first.
# Another Python: make clean install PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train test test-all lint format benchmark tensorboard clean

help:  ## print this list
	@echo "usage: make TARGET [ARGS=\"...\"] [PYTHON=python3.x]"
	@echo
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##  */|/' | while IFS='|' read -r name text; do \
		printf '  %-12s %s\n' "$$name" "$$text"; done

install: $(STAMP)  ## make .venv and install genlab into it; redone when pyproject.toml or constraints.txt change

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("genlab needs Python 3.10 or newer, and $(PYTHON) is %d.%d. Try: make install PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

train: install  ## train the default, or with overrides: make train ARGS="model=began data=celeba"
	$(BIN)/python train.py $(ARGS)

test: install  ## run the tests: make test ARGS="-k resume"
	$(BIN)/python -m pytest $(ARGS)

test-all: test  ## the tests, then longer runs, and for every config a step on another device and on two processes
	$(BIN)/python -m pytest -m "matrix or long" $(ARGS)

lint: install  ## ruff (rules and format) and mypy; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## apply ruff's fixes and its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install  ## time an iteration against plain PyTorch: make benchmark ARGS="seconds=20"
	$(BIN)/python scripts/benchmark.py $(ARGS)

tensorboard: install  ## curves and samples of all runs, in the browser
	$(BIN)/tensorboard --logdir outputs $(ARGS)

clean:  ## remove .venv and caches; outputs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find genlab configs scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
