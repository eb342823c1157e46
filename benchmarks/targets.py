"""What the engine is to reach on one H200, and whether a run did (issue 7)."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

SHAPE, L0 = (4096, 3072, 131072), 64
OURS, PEER = "gated_plugin", "saelens"

TIMES_FASTER = 8.0
TOKENS_PER_SECOND = 400_000
MEGABYTES = 4000
TIMES_FASTER_CODING = 6.0


class Target(NamedTuple):
    """One of the figures."""

    name: str
    goal: str
    found: float | None
    """None where what it takes was not measured."""

    met: bool


def are_for(case: dict[str, Any]) -> bool:
    """Whether the targets speak of this case."""
    shape = (case["rows"], case["d_in"], case["d_sae"])
    return shape == SHAPE and case["l0"] == L0 and case["device"] != "cpu"


def targets(case: dict[str, Any]) -> list[Target]:
    """All four, from the results of one case."""
    rows = case["implementations"]
    return list(_targets(rows.get(OURS, {}), rows.get(PEER, {})))


def _targets(ours: dict[str, Any], peer: dict[str, Any]) -> Iterator[Target]:
    yield _at_least("step, times SAELens'", TIMES_FASTER, _ratio(peer, ours, "step"))
    yield _at_least("tokens/s", TOKENS_PER_SECOND, ours.get("tokens_per_second"))
    used = ours.get("working_megabytes")
    yield Target("peak MB", f"< {MEGABYTES}", used, used is not None and used < MEGABYTES)
    yield _at_least(
        "encode + decode, times SAELens'",
        TIMES_FASTER_CODING,
        _ratio(peer, ours, "encode+decode"),
    )


def _at_least(name: str, goal: float, found: float | None) -> Target:
    return Target(name, f">= {goal:g}", found, found is not None and found >= goal)


def _ratio(peer: dict[str, Any], ours: dict[str, Any], column: str) -> float | None:
    cells = [row.get("times", {}).get(column) for row in (peer, ours)]
    if None in cells:
        return None
    theirs, mine = (median(cell["milliseconds"]) for cell in cells)
    return theirs / mine
