"""Cells and tables of the report."""

from __future__ import annotations

from collections.abc import Sequence

from gated_plugin.science.reproduction.estimates import Estimate

UNKNOWN = "–"
LEFT = "---"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "--:") -> str:
    """Markdown; the first column to the left, the others by `align`."""
    lines = [columns, ["---", *[align] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(estimate: Estimate | None, digits: int = 3, *, sign: bool = False) -> str:
    """`0.957 [0.955, 0.959]`; `sign` writes + before what is above 0."""
    if estimate is None:
        return UNKNOWN
    form = f"{'+' if sign else ''}.{digits}f"
    if estimate.interval is None:
        return f"{estimate.mean:{form}}"
    low, high = estimate.interval
    return f"{estimate.mean:{form}} [{low:{form}}, {high:{form}}]"


def number_range(estimates: Sequence[Estimate | None], digits: int = 3) -> str:
    """`0.931–0.978`, of the means."""
    means = sorted(estimate.mean for estimate in estimates if estimate is not None)
    if not means:
        return UNKNOWN
    ends = dict.fromkeys(f"{mean:.{digits}f}" for mean in (means[0], means[-1]))
    return " to ".join(ends)
