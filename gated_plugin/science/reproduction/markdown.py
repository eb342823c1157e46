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
    """`0.957 [0.955, 0.959]`, and `(2 of 3 seeds)` where some are missing; `sign` writes + before
    what is above 0."""
    if estimate is None:
        return UNKNOWN
    form = f"{'+' if sign else ''}.{digits}f"
    text = f"{estimate.mean:{form}}"
    if estimate.interval is not None:
        low, high = estimate.interval
        text += f" [{low:{form}}, {high:{form}}]"
    if not estimate.is_complete:
        text += f" ({estimate.seeds} of {estimate.wanted} seeds)"
    return text


def number_range(estimates: Sequence[Estimate | None], digits: int = 3) -> str:
    """`0.931–0.978`, of the means."""
    means = sorted(estimate.mean for estimate in estimates if estimate is not None)
    if not means:
        return UNKNOWN
    ends = dict.fromkeys(f"{mean:.{digits}f}" for mean in (means[0], means[-1]))
    return " to ".join(ends)
