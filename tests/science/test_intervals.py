"""Intervals, against tables, theory, and their definition on data that is drawn out."""

from __future__ import annotations

import math

import pytest
import torch

from gated_plugin.science import intervals
from gated_plugin.science.intervals import (
    Interval,
    bootstrap,
    over_seeds,
    overlap,
    percentile,
    resampled,
    student_t,
)


@pytest.mark.parametrize(
    ("degrees", "t"),  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (100, 1.984)],
)
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, abs=5e-4)


def test_over_seeds_is_the_mean_and_its_t_interval() -> None:
    found = over_seeds([1.0, 2.0, 6.0])
    assert found is not None
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)  # variance (4 + 1 + 9) / 2
    assert found.low == pytest.approx(3 - half, rel=1e-6)
    assert found.high == pytest.approx(3 + half, rel=1e-6)


def test_equal_seeds_have_an_interval_without_width() -> None:
    assert over_seeds([0.5, 0.5]) == Interval(0.5, 0.5)


def test_one_value_has_no_interval() -> None:
    assert over_seeds([1.0]) is None
    assert over_seeds([]) is None
    assert bootstrap(torch.ones(1), torch.ones(1)) is None


def test_a_drawing_takes_as_many_sequences_as_there_are() -> None:
    totals = resampled(torch.ones(37, 1))
    assert totals.shape == (1000, 1)
    assert (totals == 37).all()


def test_every_column_is_drawn_alike() -> None:
    sums = torch.rand(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    totals = resampled(torch.cat([sums, 3 * sums], 1))
    assert torch.allclose(3 * totals[:, 0], totals[:, 1], rtol=1e-12)
    assert totals[:, 0].unique().numel() > 900


def test_the_drawings_do_not_depend_on_how_many_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = torch.arange(50.0)[:, None]
    expected = resampled(sums)
    monkeypatch.setattr(intervals, "AT_ONCE", 50 * 7)
    assert torch.equal(resampled(sums), expected)


def test_no_random_state_is_used_up() -> None:
    before = torch.get_rng_state()
    resampled(torch.ones(5, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = bootstrap(values, torch.ones(4000))
    assert found is not None
    half = 1.96 * values.std().item() / math.sqrt(4000)
    assert found.low == pytest.approx(values.mean().item() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean().item() + half, abs=0.12 * half)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    generator = torch.Generator().manual_seed(3)
    held = 0
    for _ in range(200):
        weights = torch.rand(60, generator=generator) + 0.5  # sequences of different lengths
        values = weights * (2 + torch.randn(60, generator=generator))
        found = bootstrap(values, weights)
        assert found is not None
        held += found.low <= 2 <= found.high
    assert 0.90 <= held / 200 <= 0.98


def test_the_ends_are_the_percentiles() -> None:
    assert percentile(torch.arange(1001.0)) == pytest.approx(Interval(25, 975))


def test_a_ratio_that_is_not_defined_in_some_drawing_has_no_interval() -> None:
    once = torch.zeros(5)
    once[0] = 1
    assert bootstrap(torch.ones(5), once) is None


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (Interval(0, 1), Interval(2, 3), False),
        (Interval(0, 2), Interval(1, 3), True),
        (Interval(0, 9), Interval(1, 3), True),
        (Interval(0, 1), Interval(1, 2), True),
    ],
)
def test_overlap(a: Interval, b: Interval, common: bool) -> None:
    assert overlap(a, b) is overlap(b, a) is common
