"""The benchmark command at a toy shape: that it runs and what it records, never how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOY = ("--shape", "64x32x256", "--l0", "4", "--repeats", "1", "--threads", "1")
TIMED = {"step", "forward", "backward", "optimizer", "encode", "decode", "encode+decode"}
PEERS = "saelens,saelens[autocast]"
TRAINED = (
    "saelens",
    "saelens[autocast]",
    "gated_plugin",
    "gated_plugin:dense",
    "gated_plugin:torch",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process that is told nothing about waiting threads, and shown no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    done = run(*TOY, "--against", PEERS, "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "64x32x256, L0 4: one mm = " in done.stdout
    return json.loads(path.read_text())


def test_restarts_itself_with_passive_threads(report: dict[str, Any]) -> None:
    assert report["protocol"]["OMP_WAIT_POLICY"] == "passive"
    assert report["protocol"]["threads"] == 1
    assert report["idle_check"].keys() == {"before", "after"}


def test_records_every_part_of_every_implementation(report: dict[str, Any]) -> None:
    (case,) = report["cases"]
    rows = case["implementations"]
    assert set(TRAINED) < set(rows)
    for name in TRAINED:
        assert set(rows[name]["times"]) == TIMED
        for cell in rows[name]["times"].values():
            (milliseconds,), (mm,) = cell["milliseconds"], cell["mm_milliseconds"]
            assert cell["multiple_of_mm"] == pytest.approx(milliseconds / mm, abs=1e-4)


def test_records_what_the_device_can_do_and_the_floor_of_every_part(report: dict[str, Any]) -> None:
    (case,) = report["cases"]
    assert {"mm_fp32", "copy"} <= set(case["units"]) <= {"mm_fp32", "mm_bf16", "copy"}
    assert case["units"]["mm_fp32"]["ms"] == case["mm_ms"]
    flops = 2 * 64 * 32 * 256
    assert case["units"]["mm_fp32"]["tflops"] == pytest.approx(flops / case["mm_ms"] / 1e9)
    assert set(case["roofline"]) == TIMED
    assert 100 < case["implementations"]["gated_plugin"]["firing_features"] <= 256
    assert case["useful_flops_of_a_step"] == flops + 14 * 64 * 4 * 32


def test_throughput_is_that_of_the_whole_step(report: dict[str, Any]) -> None:
    for name, row in report["cases"][0]["implementations"].items():
        if name in TRAINED:
            (milliseconds,) = row["times"]["step"]["milliseconds"]
            assert row["tokens_per_second"] == pytest.approx(64 / milliseconds * 1e3)


def test_all_implementations_have_the_l0_that_was_asked_for(report: dict[str, Any]) -> None:
    rows = report["cases"][0]["implementations"]
    assert {name: row["l0"] for name, row in rows.items()} == pytest.approx(
        dict.fromkeys(rows, 4.0), rel=0.02
    )


def test_serves_with_the_engine_that_a_row_names(report: dict[str, Any]) -> None:
    rows = report["cases"][0]["implementations"]
    for name in ("gated_plugin:dense", "gated_plugin:torch"):
        assert rows[name]["served"].split(",")[0] == name.partition(":")[2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--against", "saelens,nobody"), "choose among saelens, saelens[tf32]"),
        (("--shape", "64x32"), "not ROWSxD_INxD_SAE"),
        (("--shape", "64x32x0"), "not a whole number above 0"),
        (("--shape", "64x32x16", "--l0", "16"), "must be below d_sae"),
        (("--device", "cuda"), "torch finds no GPU here"),
    ],
)
def test_refuses_what_cannot_be_measured(arguments: tuple[str, ...], complaint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
