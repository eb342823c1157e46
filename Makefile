PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check faults fuzz scale clean

demo: $(READY)
	$(BIN)/gated-hub demo

test: $(READY) check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every request of a push and a pull attacked in turn, training killed 50 times, the disk filled at
# 50 places: some minutes. `test` has a sample.
faults: $(READY)
	GATED_FAULTS=all $(BIN)/python -m pytest tests/hub/test_faults.py tests/test_kills.py \
		tests/test_full_disk.py

# 10,000 mutated files, indexes, cards and recipes: some minutes. `test` has a sample.
fuzz: $(READY)
	FUZZ_CASES=10000 $(BIN)/python -m pytest tests/fuzz

# The whole path at the size of a 7B model's dictionaries, on synthetic activations: up to an hour.
scale: $(READY)
	$(BIN)/python -m benchmarks.scale --report docs/scale.md --json docs/measurements/scale.json

# torch first and pinned: everything else then finds it installed.
$(READY): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs
