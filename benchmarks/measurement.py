"""One case, all implementations: memory in processes of their own, then times in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.clock import WARM_UP, interleaved, medians, parts, product
from benchmarks.implementations import Coding, build
from benchmarks.memory import working_megabytes
from benchmarks.workload import LEARNING_RATE, Case, make

WITHOUT_TRAINING = ("gated_plugin:encode_sparse",)


def memory(case: Case, names: Sequence[str], threads: int) -> dict[str, float | None]:
    """MB of a step by name."""
    trained = [name for name in names if name not in WITHOUT_TRAINING]
    return {name: working_megabytes(name, case, threads) for name in trained}


def times(
    case: Case, names: Sequence[str], used: Mapping[str, float | None], threads: int, repeats: int
) -> dict[str, Any]:
    """Raw times, medians and multiples of mm of every implementation."""
    torch.set_num_threads(threads)
    workload = make(case)
    built = {name: build(name, workload) for name in names}
    rows = {"mm": [product(workload)]} | {name: parts(one) for name, one in built.items()}
    milliseconds = interleaved(rows, repeats, case.device)
    mm = medians(milliseconds["mm"])["mm"]
    return {
        "case": str(case),
        **case.facts(),
        "learning_rate": LEARNING_RATE,
        "warm_up": WARM_UP,
        "mm": {"milliseconds": milliseconds["mm"]["mm"], "median_ms": mm},
        "implementations": {
            name: {
                "l0": l0(one.coding, case),
                "served": one.served(),
                "working_megabytes": used.get(name),
                "multiples_of_mm": multiples(milliseconds[name], mm),
                "median_ms": medians(milliseconds[name]),
                "milliseconds": milliseconds[name],
            }
            for name, one in built.items()
        },
    }


def multiples(milliseconds: Mapping[str, Sequence[float]], mm: float) -> dict[str, float]:
    """Medians by column, in mm."""
    return {column: round(ms / mm, 4) for column, ms in medians(milliseconds).items()}


@torch.no_grad()
def l0(coding: Coding, case: Case) -> float:
    """Features that fire per row."""
    return coding.activations(coding.encode()).count_nonzero().item() / case.rows
