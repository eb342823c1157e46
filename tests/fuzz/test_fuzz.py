"""Each mutated input is loaded right or refused with its own sentence: no crash, no hang, no
blow-up of memory, no silent wrong number.

FUZZ_CASES=10000 runs so many; FUZZ_REPLAY='cfg 17' runs one.
"""

from __future__ import annotations

import os

import pytest
from fuzzing import KINDS, Ended, Summary, run

CASES = int(os.environ.get("FUZZ_CASES", 300))
REPLAY = os.environ.get("FUZZ_REPLAY", "").split()
REPORTED = 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_file_is_loaded_right_or_refused(kind: str, summary: Summary) -> None:
    seeds = list(range(CASES * KINDS[kind].share // 100))
    if REPLAY:
        seeds = [int(REPLAY[1])] if REPLAY[0] == kind else []
    failures = []
    for ended in run(kind, seeds):
        summary.add(ended)
        failures += [ended] if ended.is_failure else []
    assert not failures, "\n\n".join(map(_told, failures[:REPORTED]))


def _told(failure: Ended) -> str:
    case = f"{failure.kind} {failure.seed}"
    return f"FUZZ_REPLAY='{case}' python -m pytest tests/fuzz\n{failure.result}"
