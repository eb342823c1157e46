"""One case, all implementations: their memory and times.

On a CPU memory is measured in processes of their own, and times are taken in turns, for the noise. On
a GPU implementations come one by one, since its memory does not do for all.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.clock import WARM_UP, Timed, interleaved, parts
from benchmarks.implementations import Coding, Implementation, build
from benchmarks.memory import held_bytes, working_megabytes, working_megabytes_of
from benchmarks.roofline import floors, useful_flops
from benchmarks.targets import OURS
from benchmarks.units import ROW, unit_chains, unit_facts
from benchmarks.workload import LEARNING_RATE, Case, Workload, make

WITHOUT_TRAINING = ("gated_plugin:encode_sparse",)


def memory(case: Case, names: Sequence[str], threads: int) -> dict[str, float | None]:
    """MB of a step by name, on a CPU; on a GPU it is measured with the times."""
    if case.device != "cpu":
        return {}
    trained = [name for name in names if name not in WITHOUT_TRAINING]
    return {name: working_megabytes(name, case, threads) for name in trained}


def times(
    case: Case, names: Sequence[str], used: Mapping[str, float | None], threads: int, repeats: int
) -> dict[str, Any]:
    """Raw times and multiples of mm of every implementation."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    workload = make(case)
    timed = interleaved({ROW: unit_chains(workload)}, workload, repeats)
    units = unit_facts(case, timed[ROW])
    rows: dict[str, Any] = {}
    for group in [list(names)] if case.device == "cpu" else [[name] for name in names]:
        try:
            rows |= _results(case, group, workload, used, repeats)
        except torch.OutOfMemoryError:
            rows |= {name: {"out_of_memory": True, "times": {}} for name in group}
        _free(case.device)
    touched = rows.get(OURS, {}).get("firing_features") or 0
    return {
        "case": str(case),
        **case.facts(),
        "learning_rate": LEARNING_RATE,
        "warm_up": WARM_UP,
        "mm_ms": units["mm_fp32"]["ms"],
        "units": units,
        "useful_flops_of_a_step": useful_flops(case),
        "roofline": {part: floor._asdict() for part, floor in floors(case, units, touched).items()},
        "implementations": rows,
    }


def _results(
    case: Case,
    names: Sequence[str],
    workload: Workload,
    used: Mapping[str, float | None],
    repeats: int,
) -> dict[str, Any]:
    before = held_bytes(case.device)
    built = {name: build(name, workload) for name in names}
    chains = {name: parts(implementation) for name, implementation in built.items()}
    timed = interleaved(chains, workload, repeats)
    return {
        name: {
            "l0": l0(made.coding, case),
            "firing_features": firing_features(made.coding) if name == OURS else None,
            "served": made.served(),
            "working_megabytes": _memory_of_one(made, before, case) or used.get(name),
            **_throughput(case, timed[name]),
            "times": {column: cell.facts() for column, cell in timed[name].items()},
        }
        for name, made in built.items()
    }


def _memory_of_one(made: Implementation, before: int, case: Case) -> float | None:
    """On a GPU, where nothing else is built by now."""
    if case.device == "cpu" or made.training is None:
        return None
    return working_megabytes_of(made.training, before, case.device)


def _throughput(case: Case, timed: Mapping[str, Timed]) -> dict[str, float]:
    """Of the whole step, where it was timed."""
    if "step" not in timed:
        return {}
    seconds = median(timed["step"].milliseconds) / 1e3
    return {
        "tokens_per_second": case.rows / seconds,
        "useful_tflops": useful_flops(case) / seconds / 1e12,
    }


def _free(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


@torch.no_grad()
def l0(coding: Coding, case: Case) -> float:
    """Features that fire per row."""
    return coding.activations(coding.encode()).count_nonzero().item() / case.rows


@torch.no_grad()
def firing_features(coding: Coding) -> int:
    """Of d_sae, those that fire on some row; where activations are dense."""
    return int(coding.activations(coding.encode()).any(0).sum().item())
