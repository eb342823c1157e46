"""Comparisons of measured figures, and the verdict that follows from them.

Each finding says whether its mean is on the right side, and whether its intervals leave no doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from gated_plugin.science.intervals import Interval, overlap
from gated_plugin.science.reproduction.estimates import (
    Estimate,
    estimate,
    gain,
    ratio_of_l0,
    recovery,
)
from gated_plugin.science.reproduction.results import OWN, Results


class Verdict(str, Enum):
    """What the figures say about a claim."""

    holds = "holds"
    weakly = "holds weakly"
    fails = "does not hold"
    unmeasured = "not measured"


VERDICT_RULE = (
    "A claim *holds* if every mean is on its side, every interval too, and every point was "
    "measured with every seed. It *holds weakly* if every mean is, but an interval is not, or a point "
    "lies outside of what was measured with some seed, or there is one seed and so no interval. It "
    "*does not hold* if a mean is on the other side. The exception is a claim to be level with "
    "another: its mean alone has to be on the claim's side for it to *hold*, the intervals may "
    "overlap; it *holds weakly* too if its mean is lower and the intervals overlap."
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison."""

    where: str
    """Site, L0, and what else tells it apart."""
    ours: Estimate | None
    """None where it was not measured."""
    theirs: Estimate | None = None
    """What it is compared with, unless that is a number of the claim's rule."""
    right: bool = False
    """Whether the mean is on the claim's side; of `level`, whether it is not lower beyond doubt."""
    certain: bool = False
    """Whether the intervals, over every seed of the scale, are so too; of `level`, the mean."""
    note: str = ""


def verdict(findings: Sequence[Finding]) -> Verdict:
    """By `VERDICT_RULE`."""
    measured = [finding for finding in findings if finding.ours is not None]
    if not measured:
        return Verdict.unmeasured
    if not all(finding.right for finding in measured):
        return Verdict.fails
    complete = len(measured) == len(findings)
    certain = complete and all(finding.certain for finding in measured)
    return Verdict.holds if certain else Verdict.weakly


def higher(
    results: Results, ours: str, theirs: str, *, sites: Sequence[str], encoder: str = OWN
) -> list[Finding]:
    """At every L0, whether `ours` recovers more of the loss, with intervals that do not overlap."""
    return [
        _above(
            f"{site}, L0 {l0:g}",
            estimate(results, site, ours, l0, encoder=encoder),
            estimate(results, site, theirs, l0, encoder=encoder),
        )
        for site in sites
        for l0 in results.l0
    ]


def level(results: Results, ours: str, theirs: str, *, sites: Sequence[str]) -> list[Finding]:
    """At every L0, whether `ours` is on the front of `theirs` or above: certain where its mean is
    not lower and there are intervals, right where the intervals overlap."""
    return [
        _not_below(
            f"{site}, L0 {l0:g}",
            estimate(results, site, ours, l0),
            estimate(results, site, theirs, l0),
        )
        for site in sites
        for l0 in results.l0
    ]


def in_equal_time(
    results: Results, ours: str, theirs: Sequence[str], *, sites: Sequence[str]
) -> list[Finding]:
    """At every L0, whether `ours` recovers more than each of `theirs` in no more training time."""
    found = []
    for site in sites:
        for peer in theirs:
            a, b = (results.seconds(site, arm) for arm in (ours, peer))
            share = None if a is None or b is None else a / b
            for finding in higher(results, ours, peer, sites=(site,)):
                named = replace(finding, where=f"{peer}, {finding.where}")
                found.append(_timed(named, share))
    return found


def unbiased(
    results: Results, ours: str, theirs: str, *, sites: Sequence[str], band: Interval, below: float
) -> list[Finding]:
    """Where γ of `theirs` is less than `below`, whether that of `ours` lies in the band."""
    found = []
    for site in sites:
        for l0 in results.l0:
            a, b = (estimate(results, site, arm, l0, figure="gamma") for arm in (ours, theirs))
            if b is None or b.mean < below:
                finding = _inside(f"{site}, L0 {l0:g}", a if b else None, *band)
                found.append(replace(finding, theirs=b))
    return found


def fewer(
    results: Results, ours: str, theirs: str, *, sites: Sequence[str], at_most: float
) -> list[Finding]:
    """At matched loss recovered, whether `ours` needs at most this share of the features."""
    return [_inside(site, ratio_of_l0(results, site, ours, theirs), 0, at_most) for site in sites]


def gains(
    results: Results, ours: str, theirs: str, *, sites: Sequence[str], encoder: str = OWN
) -> list[Finding]:
    """Whether `ours` recovers more loss than `theirs`, paired by seed, over all L0."""
    found = []
    for site in sites:
        more = gain(results, site, ours, theirs, encoder=encoder)
        if more is None:
            found.append(Finding(where=site, ours=None))
            continue
        above = more.interval is not None and more.interval.low > 0
        certain = above and more.is_complete
        found.append(Finding(where=site, ours=more, right=more.mean > 0, certain=certain))
    return found


def alive(results: Results, arm: str, *, sites: Sequence[str], at_least: float) -> list[Finding]:
    """At every L0, whether so many features fire on the held-out text."""
    return [
        _inside(
            f"{site}, L0 {l0:g}", estimate(results, site, arm, l0, figure="alive"), at_least, 1.0
        )
        for site in sites
        for l0 in results.l0
    ]


def recovers(
    results: Results, ours: str, theirs: Sequence[str], figures: Mapping[str, str]
) -> list[Finding]:
    """On the synthetic model, at the L0 asked for, whether `ours` leads each of `theirs` in each
    figure.

    Args:
        figures: fields of `Recovery`, and what to call them.
    """
    return [
        _above(
            f"{title}, {peer}",
            recovery(results, ours, figure),
            recovery(results, peer, figure),
        )
        for figure, title in figures.items()
        for peer in theirs
    ]


def _above(where: str, ours: Estimate | None, theirs: Estimate | None) -> Finding:
    if ours is None or theirs is None:
        return Finding(where=where, ours=None, theirs=theirs)
    return Finding(
        where=where,
        ours=ours,
        theirs=theirs,
        right=ours.mean > theirs.mean,
        certain=ours.clearly_above(theirs) and ours.is_complete and theirs.is_complete,
    )


def _not_below(where: str, ours: Estimate | None, theirs: Estimate | None) -> Finding:
    if ours is None or theirs is None:
        return Finding(where=where, ours=None, theirs=theirs)
    a, b = ours.interval, theirs.interval
    intervals = a is not None and b is not None
    at_least = ours.mean >= theirs.mean
    return Finding(
        where=where,
        ours=ours,
        theirs=theirs,
        right=at_least or (a is not None and b is not None and overlap(a, b)),
        certain=at_least and intervals and ours.is_complete and theirs.is_complete,
    )


def _inside(where: str, ours: Estimate | None, low: float, high: float) -> Finding:
    """Whether a figure, and its interval, lie between the two."""
    if ours is None:
        return Finding(where=where, ours=None)
    right = low <= ours.mean <= high
    certain = ours.within(low, high) and ours.is_complete
    return Finding(where=where, ours=ours, right=right, certain=certain)


def _timed(finding: Finding, share: float | None) -> Finding:
    """With the share of the other's training time that ours took."""
    if share is None:
        return replace(finding, ours=None)
    fits = share <= 1
    return replace(
        finding,
        right=finding.right and fits,
        certain=finding.certain and fits,
        note=f"in {share:.2f} of its time",
    )
