"""What is said of a run on a GPU, from results that were never measured."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.implementations import why_not
from benchmarks.roofline import floors, useful_flops
from benchmarks.table import render
from benchmarks.targets import are_for, targets
from benchmarks.workload import Case

CASE = Case(rows=4096, d_in=3072, d_sae=131072, l0=64, beta1=0.0, device="cuda")
UNITS = {
    "mm_fp32": {"ms": 66.0, "tflops": 50.0},
    "mm_tf32": {"ms": 8.2, "tflops": 400.0},
    "mm_bf16": {"ms": 4.7, "tflops": 700.0},
    "copy": {"ms": 0.8, "gb_per_s": 4000.0},
}


def cells(step: float, coding: float) -> dict[str, Any]:
    return {
        column: {"milliseconds": [ms], "multiple_of_mm": ms / 66.0}
        for column, ms in (("step", step), ("encode+decode", coding))
    }


def result(*, device: str = "cuda", **ours: float) -> dict[str, Any]:
    """A case as `measurement.times` gives it."""
    facts = CASE.facts() | {"device": device}
    return {
        "case": str(CASE),
        **facts,
        "mm_ms": 66.0,
        "units": UNITS,
        "useful_flops_of_a_step": useful_flops(CASE),
        "roofline": {part: floor._asdict() for part, floor in floors(CASE, UNITS, 100_000).items()},
        "implementations": {
            "saelens": {"working_megabytes": 21000.0, "times": cells(1000.0, 200.0)},
            "gated_plugin": {
                "working_megabytes": ours["megabytes"],
                "tokens_per_second": 4096 / ours["step"] * 1e3,
                "times": cells(ours["step"], ours["coding"]),
            },
            "saelens[tf32]": {"out_of_memory": True, "times": {}},
        },
    }


GOOD = {"step": 10.0, "coding": 8.0, "megabytes": 900.0}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, set()),
        ({"step": 10.3}, {"tokens/s"}),
        ({"step": 126.0}, {"tokens/s", "step, times SAELens'"}),
        ({"megabytes": 4000.0}, {"peak MB"}),
        ({"coding": 34.0}, {"encode + decode, times SAELens'"}),
    ],
)
def test_a_target_is_met_or_not(change: dict[str, float], missed: set[str]) -> None:
    found = targets(result(**(GOOD | change)))
    assert len(found) == 4
    assert {target.name for target in found if not target.met} == missed


def test_what_was_not_measured_is_not_met() -> None:
    made = result(**GOOD)
    made["implementations"] = {}
    assert [target.met for target in targets(made)] == [False] * 4


def test_targets_are_for_one_shape_on_a_gpu() -> None:
    assert are_for(result(**GOOD))
    assert not are_for(result(device="cpu", **GOOD))
    assert not are_for(result(**GOOD) | {"l0": 16})


def test_everything_is_printed() -> None:
    text = render(result(**GOOD))
    assert "mm_tf32 8.20 ms, 400.00 TFLOP/s" in text
    assert "saelens[tf32]" in text
    assert "out of memory" in text
    assert text.count("met") - text.count("not met") == 4


def test_a_floor_is_what_must_be_moved_or_computed() -> None:
    found = floors(CASE, UNITS, 100_000)
    weight = 4 * 3072 * 131072
    assert found["backward"].milliseconds >= 2 * weight / 4e9
    assert found["forward"].milliseconds >= 2 * 4096 * 3072 * 131072 / 700e9
    assert (found["forward"].binds, found["backward"].binds) == ("FLOPs", "bytes")
    parts = ("forward", "backward", "optimizer")
    assert found["step"].milliseconds == pytest.approx(sum(found[p].milliseconds for p in parts))


def test_rows_of_a_gpu_are_left_out_on_a_cpu_and_the_other_way_round() -> None:
    for name in ("saelens[tf32]", "gated_plugin:triton"):
        assert "--device cuda" in str(why_not(name, "cpu"))
    assert "--device cpu" in str(why_not("gated_plugin:numba", "cuda:1"))
    assert why_not("saelens[autocast]", "cpu") is None
