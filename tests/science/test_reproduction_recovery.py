"""Verdicts on the synthetic model: every figure, at the L0 that was asked for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from gated_plugin.science.reproduction import findings as find
from gated_plugin.science.reproduction.findings import Verdict, verdict
from gated_plugin.science.reproduction.results import Results
from gated_plugin.science.synthetic import Recovery

SEEDS = (1, 2, 3)


def recovery(**figures: Any) -> Recovery:
    zeros = {field.name: 0 for field in fields(Recovery)}
    return Recovery(**{**zeros, **figures})


def test_recovery_has_to_lead_in_every_figure() -> None:
    def rows(arm: str, best_match: float, f1: float) -> list[Recovery]:
        return [recovery(arm=arm, seed=s, l0=8, best_match=best_match, f1=f1) for s in SEEDS]

    figures = {"best_match": "best match", "f1": "F1"}

    def of(best_match: float, f1: float) -> Verdict:
        measured = Results(
            synthetic=(*rows("gated", best_match, f1), *rows("standard", 0.8, 0.8)),
            seeds=SEEDS,
            synthetic_l0=8,
        )
        return verdict(find.recovers(measured, "gated", ["standard"], figures))

    assert of(0.9, 0.9) is Verdict.holds
    assert of(0.9, 0.7) is Verdict.fails


@pytest.mark.parametrize(
    ("l0", "expected"),
    [
        ((8, 7.3, 8.7), Verdict.holds),
        ((8, 7.1, 8), Verdict.weakly),
        ((8, 8.9, 7.1), Verdict.weakly),
        ((9, 9, 9), Verdict.unmeasured),
    ],
)
def test_recovery_at_another_l0_does_not_count(l0: tuple[float, ...], expected: Verdict) -> None:
    pairs = list(zip(SEEDS, l0, strict=True))
    ours = [recovery(arm="gated", seed=s, l0=near, f1=0.9) for s, near in pairs]
    theirs = [recovery(arm="standard", seed=s, l0=8, f1=0.8) for s in SEEDS]
    measured = Results(synthetic=(*ours, *theirs), seeds=SEEDS, synthetic_l0=8)
    assert verdict(find.recovers(measured, "gated", ["standard"], {"f1": "F1"})) is expected
