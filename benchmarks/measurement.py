"""One case, all implementations: memory in processes of their own, then times in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.clock import WARM_UP, interleaved, mm_milliseconds, parts
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
    """Raw times and multiples of mm of every implementation."""
    torch.set_num_threads(threads)
    workload = make(case)
    built = {name: build(name, workload) for name in names}
    rows = {name: parts(implementation) for name, implementation in built.items()}
    timed = interleaved(rows, workload, repeats)
    return {
        "case": str(case),
        **case.facts(),
        "learning_rate": LEARNING_RATE,
        "warm_up": WARM_UP,
        "mm_ms": mm_milliseconds(timed),
        "implementations": {
            name: {
                "l0": l0(implementation.coding, case),
                "served": implementation.served(),
                "working_megabytes": used.get(name),
                "times": {column: cell.facts() for column, cell in timed[name].items()},
            }
            for name, implementation in built.items()
        },
    }


@torch.no_grad()
def l0(coding: Coding, case: Case) -> float:
    """Features that fire per row."""
    return coding.activations(coding.encode()).count_nonzero().item() / case.rows
