"""Curves of a figure against L0: their front, and what lies between the measured points.

A curve is what one arm makes with one seed at several λ. Between two neighbours a figure is linear
in log L0, as the paper's curves nearly are (arXiv 2404.16014, figure 3); outside of the measured
range there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple


class Point(NamedTuple):
    """One measured SAE."""

    l0: float
    """Features that fire per token; above 0: an SAE that never fires is on no curve."""

    value: float
    """Loss recovered, or another figure; for `front` and what builds on it, higher is better."""


class AtFidelity(NamedTuple):
    """Two curves at the same value."""

    value: float

    ratio: float
    """L0 of the first over L0 of the second."""


class L0Ratio(NamedTuple):
    """How many features one curve needs, as a share of what another needs."""

    at: tuple[AtFidelity, ...]
    """At each value that was measured on one curve and lies within the range of the other."""

    median: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both L0 and value, by L0; their values rise."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.l0, -p.value)):
        if not kept or point.value > kept[-1].value:
            kept.append(point)
    return kept


def at_l0(points: Sequence[Point], l0: float) -> float | None:
    """The value at `l0`; None outside of the measured range. Of two points of one L0 the higher
    value counts."""
    highest = {math.log(p.l0): p.value for p in sorted(points)}
    return _between(list(highest.items()), math.log(l0))


def matched_l0(points: Sequence[Point], value: float) -> float | None:
    """The least L0 at which the front reaches `value`; None where it was not measured so low or so
    high."""
    found = _between([(p.value, math.log(p.l0)) for p in front(points)], value)
    return None if found is None else math.exp(found)


def l0_ratio(ours: Sequence[Point], theirs: Sequence[Point]) -> L0Ratio | None:
    """L0 of `ours` over L0 of `theirs` at equal values; None where the curves share none."""
    values = sorted({p.value for p in [*front(ours), *front(theirs)]})
    at = []
    for value in values:
        numerator, denominator = matched_l0(ours, value), matched_l0(theirs, value)
        if numerator is not None and denominator is not None:
            at.append(AtFidelity(value, numerator / denominator))
    return L0Ratio(tuple(at), median(each.ratio for each in at)) if at else None


def _between(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """y at `x` of a polygon [(x, y), …] whose x rise."""
    for at, y in curve:
        if at == x:
            return y
    for (left, y_left), (right, y_right) in pairwise(curve):
        if left < x < right:
            return y_left + (x - left) / (right - left) * (y_right - y_left)
    return None
