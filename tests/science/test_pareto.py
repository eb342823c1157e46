"""Fronts and what lies between measured points, on curves whose answer is known."""

from __future__ import annotations

import math

import pytest

from gated_plugin.science.pareto import Point, at_l0, front, l0_ratio, matched_l0


def logarithmic(*l0: float, shift: float = 1.0) -> list[Point]:
    """0.5 + 0.1 log L0, of a curve that needs `shift` times the features."""
    return [Point(x, 0.5 + 0.1 * math.log(x / shift)) for x in l0]


def test_the_front_leaves_out_what_another_point_beats() -> None:
    points = [Point(40, 0.95), Point(10, 0.9), Point(20, 0.89), Point(40, 0.94), Point(80, 0.95)]
    assert front(points) == [Point(10, 0.9), Point(40, 0.95)]
    assert front([]) == []


@pytest.mark.parametrize("l0", [10, 15.5, 30, 47, 90])
def test_a_curve_that_is_linear_in_log_l0_is_met_between_its_points(l0: float) -> None:
    (expected,) = logarithmic(l0)
    curve = logarithmic(90, 10, 30)
    assert at_l0(curve, l0) == pytest.approx(expected.value, abs=1e-12)
    assert matched_l0(curve, expected.value) == pytest.approx(l0, rel=1e-12)


@pytest.mark.parametrize("l0", [9.99, 90.01])
def test_nothing_is_said_of_what_was_not_measured(l0: float) -> None:
    (beyond,) = logarithmic(l0)
    assert at_l0(logarithmic(10, 30, 90), l0) is None
    assert matched_l0(logarithmic(10, 30, 90), beyond.value) is None
    assert at_l0([], l0) is None


def test_one_point_answers_for_itself_alone() -> None:
    assert at_l0([Point(10, 0.9)], 10) == 0.9
    assert at_l0([Point(10, 0.9)], 11) is None
    assert matched_l0([Point(10, 0.9)], 0.9) == pytest.approx(10)


def test_a_dip_counts_for_the_value_and_not_for_the_matched_l0() -> None:
    curve = [Point(10, 0.9), Point(20, 0.8), Point(40, 1.0)]
    assert at_l0(curve, 20) == 0.8
    assert matched_l0(curve, 0.95) == pytest.approx(20)  # halfway from 10 to 40 in log L0


def test_two_points_of_one_l0_are_no_division_by_zero() -> None:
    curve = [Point(10, 0.8), Point(10, 0.9), Point(40, 1.0)]
    assert at_l0(curve, 10) == 0.9
    assert at_l0(curve, 20) == pytest.approx(0.95)
    assert matched_l0(curve, 0.95) == pytest.approx(20)


def test_a_curve_that_needs_a_third_of_the_features_has_that_ratio_everywhere() -> None:
    ours, theirs = logarithmic(10, 30, 90), logarithmic(25, 80, 200, shift=3.0)
    found = l0_ratio(ours, theirs)
    assert found is not None
    assert [each.ratio for each in found.at] == pytest.approx([1 / 3] * len(found.at))
    assert found.median == pytest.approx(1 / 3)
    shared = sorted(p.value for p in [ours[0], ours[1], theirs[1], theirs[2]])
    assert [each.value for each in found.at] == pytest.approx(shared)


def test_curves_that_share_no_value_have_no_ratio() -> None:
    assert l0_ratio(logarithmic(10, 20), logarithmic(10, 20, shift=5.0)) is None
    assert l0_ratio([], logarithmic(10, 20)) is None
