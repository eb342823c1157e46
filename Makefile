PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check faults fuzz clean

demo: $(READY)
	$(BIN)/gated-hub demo

test: $(READY) check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every request of a push and a pull attacked in turn: some minutes. `test` has a sample.
faults: $(READY)
	GATED_FAULTS=all $(BIN)/python -m pytest tests/hub/test_faults.py

# 10,000 mutated files, indexes, cards and recipes: some minutes. `test` has a sample.
fuzz: $(READY)
	FUZZ_CASES=10000 $(BIN)/python -m pytest tests/fuzz

# torch first and pinned: everything else then finds it installed.
$(READY): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs
