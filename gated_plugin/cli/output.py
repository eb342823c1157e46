"""The one place where answers are printed: for people, as JSON, or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


class Output(str, Enum):
    """How a command answers."""

    human = "human"
    json = "json"
    quiet = "quiet"


def chosen(as_json: bool, quiet: bool) -> Output:
    """What `--json` and `--quiet` ask for; `--json` wins."""
    return Output.json if as_json else Output.quiet if quiet else Output.human


def answer(output: Output, figures: Mapping[str, Any], title: str = "") -> None:
    """Print the answer of a command on standard output."""
    if output is Output.json:
        print(json.dumps(dict(figures)))
    elif output is Output.human:
        if title:
            print(title)
        width = max(map(len, figures), default=0)
        for name, value in figures.items():
            print(f"  {name:<{width}}  {_readable(value)}")


def table(
    output: Output, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> None:
    """Print rows: as a list of objects in JSON, for people as aligned columns.

    Args:
        title: what the rows are, and their key in JSON.
        columns: heading of each column, by its key in the rows.
    """
    if output is Output.json:
        print(json.dumps({title: [dict(row) for row in rows]}))
    elif output is Output.human:
        lines = [tuple(columns.values())]
        lines += [tuple(_readable(row.get(key)) for key in columns) for row in rows]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(padded).rstrip())


def text(content: str) -> None:
    """Print a text that is an answer by itself, such as a card."""
    print(_printable(content), end="" if content.endswith("\n") else "\n")


def error(sentence: str) -> None:
    """Print what went wrong and what to do next on standard error."""
    print(f"Error: {_printable(sentence)}", file=sys.stderr)


def _readable(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return _printable(", ".join(map(str, value))) or "-"
    return _printable(str(value))


def _printable(content: str) -> str:
    """Without the control characters by which a stranger's text could rule a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in content
    )
