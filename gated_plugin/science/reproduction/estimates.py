"""Figures of arms at a matched L0, with intervals over seeds.

In every seed's sweep the figure is interpolated (`pareto.at_l0`), never extrapolated; its interval
is Student's over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gated_plugin.science.intervals import Interval, over_seeds, overlap
from gated_plugin.science.pareto import Point, at_l0, l0_ratio
from gated_plugin.science.reproduction.results import OWN, Results, Row

LOSS_RECOVERED = "loss_recovered"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    interval: Interval | None
    """Of 95 %; None with one seed."""
    seeds: int
    """That the mean is over."""
    wanted: int
    """Seeds of the scale."""

    @classmethod
    def of(cls, values: Sequence[float], wanted: int) -> Estimate | None:
        """None where there is no value."""
        if not values:
            return None
        return cls(
            mean=fmean(values), interval=over_seeds(values), seeds=len(values), wanted=wanted
        )

    @property
    def is_complete(self) -> bool:
        """Whether every seed of the scale is in it: the others may be those that do worse."""
        return self.seeds >= self.wanted

    def within(self, low: float, high: float) -> bool:
        """Whether the whole interval lies between the two, the ends included."""
        return self.interval is not None and low <= self.interval.low <= self.interval.high <= high

    def clearly_above(self, other: Estimate) -> bool:
        """Whether the intervals have no value in common, and this one is the higher."""
        a, b = self.interval, other.interval
        return a is not None and b is not None and not overlap(a, b) and self.mean > other.mean


def estimate(
    results: Results,
    site: str,
    arm: str,
    l0: float,
    *,
    figure: str = LOSS_RECOVERED,
    encoder: str = OWN,
) -> Estimate | None:
    """A figure of an arm at one L0; None where no seed's sweep reaches it."""
    values = _at(results.of(site, arm, encoder), l0, figure).values()
    return Estimate.of(list(values), len(results.seeds))


def gain(
    results: Results, site: str, ours: str, theirs: str, *, encoder: str = OWN
) -> Estimate | None:
    """Loss recovered by `ours` minus that by `theirs`, paired by seed: the mean over the points of
    L0 that all their sweeps reach; None where there is no such point."""
    first, second = (results.of(site, arm, encoder) for arm in (ours, theirs))
    seeds = first.keys() & second.keys()
    pairs = [(_at(first, l0), _at(second, l0)) for l0 in results.l0]
    shared = [(a, b) for a, b in pairs if seeds <= a.keys() & b.keys()]
    if not shared:
        return None
    gains = [fmean(a[seed] - b[seed] for a, b in shared) for seed in sorted(seeds)]
    return Estimate.of(gains, len(results.seeds))


def ratio_of_l0(results: Results, site: str, ours: str, theirs: str) -> Estimate | None:
    """L0 of `ours` over L0 of `theirs` at the same loss recovered: per seed, the median over what
    both reach."""
    first, second = results.of(site, ours), results.of(site, theirs)
    ratios = [
        l0_ratio(_points(first[seed]), _points(second[seed]))
        for seed in sorted(first.keys() & second.keys())
    ]
    medians = [ratio.median for ratio in ratios if ratio is not None]
    return Estimate.of(medians, len(results.seeds))


def recovery(results: Results, arm: str, figure: str) -> Estimate | None:
    """A figure of an arm on the synthetic model, over the SAEs near the L0 that was asked for; None
    where there are none."""
    values = [getattr(row, figure) for row in results.recovered(arm)]
    return Estimate.of(values, len(results.seeds))


def _at(by_seed: dict[int, list[Row]], l0: float, figure: str = LOSS_RECOVERED) -> dict[int, float]:
    """Of the seeds whose sweep reaches that L0."""
    values = {seed: at_l0(_points(rows, figure), l0) for seed, rows in by_seed.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _points(rows: Sequence[Row], figure: str = LOSS_RECOVERED) -> list[Point]:
    """Without what never fires or has no such figure."""
    pairs = [(row.l0, getattr(row, figure)) for row in rows if row.l0 > 0]
    return [Point(l0, value) for l0, value in pairs if value is not None]
