"""Whatever goes wrong on the way, a repository and a pulled folder are the old or the new.

GATED_FAULTS=all strikes every request, and takes some minutes; without it there is a sample.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import endure, plan
from kinds import KINDS
from scenes import Scene, Scenes

IS_SAMPLE = os.environ.get("GATED_FAULTS") != "all"
SEED = 5
SOME = 20
"""Cases of each kind that does not strike every request."""


@pytest.fixture(scope="module")
def scenes(start: object, made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    return Scenes(made_run, tmp_path_factory.mktemp("scenes")).make()


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[dict[str, Counter[str]]]:
    """Counts what became of each kind's cases; of all of them it prints a table."""
    counts: dict[str, Counter[str]] = {}
    yield counts
    if IS_SAMPLE:
        return
    columns = ("cases", "succeeded", "refused", "killed", "wrong")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\n" + " " * 20, *(f"{column:>10}" for column in columns))
        for kind, count in {**counts, "all": sum(counts.values(), Counter())}.items():
            print(f"{kind:20}", *(f"{count[column]:10}" for column in columns))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_leaves_the_old_or_the_new(
    kind: str, scenes: list[Scene], tally: dict[str, Counter[str]], tmp_path: Path
) -> None:
    cases = plan(kind, scenes, SEED, SOME)
    outcomes = [
        endure(case, tmp_path / str(number))
        for number, case in enumerate(cases[:1] if IS_SAMPLE else cases)
    ]
    tally[kind] = Counter(each for outcome in outcomes for each in outcome.counted)
    bad = [str(outcome) for outcome in outcomes if outcome.wrong]
    if bad:
        pytest.fail("\n".join([f"{len(bad)} of {len(outcomes)}:", *bad]), pytrace=False)
