"""What the paper's Tables 1–8 say about its claims, where they have both arms of a hook point."""

from __future__ import annotations

from statistics import median

from gated_plugin.hub.cards.paper import TOKENS, PaperRow, rows
from gated_plugin.science.pareto import Point, at_l0, matched_l0

Pair = tuple[list[PaperRow], list[PaperRow]]


def advantage() -> str:
    """Loss recovered of Gated, at the baseline's L0 and in percent, minus that of the baseline."""
    points = []
    for gated, baseline in _pairs(curves=True):
        for row in baseline:
            there = at_l0(_front(gated), row.l0)
            if there is not None:
                points.append(there - row.loss_recovered)
    return (
        f"at the L0 of {len(points)} baselines, "
        f"{min(points):.1f} to {max(points):.1f} percentage points more"
    )


def shrinkage() -> str:
    """Ranges of γ."""
    pairs = _pairs()
    gated = [row.gamma for pair in pairs for row in pair[0]]
    baseline = [row.gamma for pair in pairs for row in pair[1]]
    return (
        f"γ {min(gated):.3f}–{max(gated):.3f}, the baseline's "
        f"{min(baseline):.3f}–{max(baseline):.3f} on the same {len(pairs)} hook points"
    )


def share_of_features() -> str:
    """L0 of Gated over that of the baseline at the baseline's loss recovered."""
    ratios = []
    for gated, baseline in _pairs(curves=True):
        for row in baseline:
            needed = matched_l0(_front(gated), row.loss_recovered)
            if needed is not None:
                ratios.append(needed / row.l0)
    return (
        f"about half; in the tables {min(ratios):.2f}–{max(ratios):.2f} of the baseline's L0, "
        f"median {median(ratios):.2f}"
    )


def _front(gated: list[PaperRow]) -> list[Point]:
    return [Point(row.l0, row.loss_recovered) for row in gated]


def _pairs(*, curves: bool = False) -> list[Pair]:
    """Gated and baseline rows of every hook point that has both; with `curves` only where Gated has
    two, between which one can interpolate."""
    found: dict[tuple[str, str, int], Pair] = {}
    for model in TOKENS:
        for row in rows(model):
            pair = found.setdefault((row.model, row.site, row.layer), ([], []))
            pair[row.arch == "baseline"].append(row)
    return [pair for pair in found.values() if len(pair[0]) > curves and pair[1]]
