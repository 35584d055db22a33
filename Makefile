# Every target makes the environment `.venv` when it is missing or older than its inputs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,dm-control,minari,mujoco,plot,sweep,tensorboard

.PHONY: demo test test-all check format bench d4rl clean

demo: $(STAMP)
	$(BIN)/python -m experiments.demo

test: check
	$(BIN)/python -m pytest -n 2

# Everything, compiled as users' programs are.
test-all: check
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 -m ""

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every part, small, in less than ten minutes; more with benchmark=full (README.md, "Measure it").
bench: $(STAMP)
	$(BIN)/python -m experiments.benchmark

# The d4rl package is used by one test only, as a cross-check of scores and episode boundaries.
# Its own dependencies break its import (mujoco-py raises on current systems), so it comes without them.
d4rl: $(STAMP)
	$(BIN)/python -m pip install --no-deps d4rl==1.1 gym==0.26.2 gym-notices==0.0.8
	$(BIN)/python -m pip install tqdm -c constraints.txt

clean:
	rm -rf $(VENV) outputs multirun .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] < (3, 14) else "bpt-rl needs Python 3.11 to 3.13, found %d.%d; set PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@
