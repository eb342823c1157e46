"""The benchmark of memory by part, at a toy shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["forward", "backward", "clip", "Adam and decoder norm", "decoder norm"]
WHOLE = "the trainer's whole step"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bounded") / "out.json"
    command = [sys.executable, "-m", "benchmarks.bounded", "--shape", "64x128x40000", "--l0", "8"]
    done = subprocess.run(
        [*command, "--threads", "1", "--json", str(path)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "64x128x40000, in MB: weights 41" in done.stdout
    return json.loads(path.read_text())


def test_every_part_of_every_state_is_reported(report: dict[str, Any]) -> None:
    names = {step["state"]: [part["name"] for part in step["parts"]] for step in report["steps"]}
    assert names == {
        "start, first step": PARTS,
        "start": [*PARTS, WHOLE],
        "L0 8": [*PARTS, WHOLE],
    }
    assert [step["served"] for step in report["steps"]] == ["dense", "dense", "numba"]
    assert set(report["tokens_per_second"]) == {"start", "L0 8"}


def test_what_is_held_is_counted_once(report: dict[str, Any]) -> None:
    matrices = 4 * 2 * 128 * 40000
    held = report["held_bytes"]
    assert held["weights"] == pytest.approx(matrices, rel=0.02)
    # With β1 = 0 the first moment is a gradient's memory: two gradients and the second moment.
    assert held["gradients"] + held["optimizer"] == pytest.approx(3 * matrices, rel=0.04)


def test_the_dense_step_works_with_its_arrays_and_the_sparse_one_without(
    report: dict[str, Any],
) -> None:
    array = 4 * 64 * 40000
    start, sparse = (
        {p["name"]: p["working_bytes"] for p in s["parts"]} for s in report["steps"][1:]
    )
    assert 4 * array < start["backward"] < 4 * array + 16e6
    assert sparse["backward"] < 16e6


def test_saelens_pre_activations_are_counted(report: dict[str, Any]) -> None:
    kept = {row["shape"]: row for row in report["saelens_keeps"] if row["element_bytes"] == 4}
    array = kept["[rows, d_sae]"]
    assert array["bytes"] == array["tensors"] * 4 * 64 * 40000
    assert array["tensors"] >= 4
    assert report["saelens_peak_arrays"] > array["tensors"]
