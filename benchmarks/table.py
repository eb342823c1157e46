"""A case's results as text, in multiples of mm."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "step",
    "forward",
    "backward",
    "optimizer",
    "encode",
    "decode",
    "encode+decode",
)
MEMORY = "peak MB"


def render(result: dict[str, Any]) -> str:
    """One line per implementation; `–` where a column does not apply."""
    rows = result["implementations"]
    width = max(map(len, rows))
    head = "  ".join([" " * width, *(column.rjust(9) for column in (*COLUMNS, MEMORY))])
    lines = [f"{result['case']}: one mm = {result['mm_ms']:.1f} ms", head]
    for name, row in rows.items():
        multiples = {column: cell["multiple_of_mm"] for column, cell in row["times"].items()}
        cells = [_number(multiples.get(column), 2) for column in COLUMNS]
        cells.append(_number(row["working_megabytes"], 0))
        heads = (column.rjust(9) for column in (*COLUMNS, MEMORY))
        aligned = (cell.rjust(len(column)) for cell, column in zip(cells, heads, strict=True))
        lines.append("  ".join([name.ljust(width), *aligned]))
    return "\n".join(lines)


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"
