"""Texts that others wrote, for a card: none of them can end a table, a link or a code span."""

from __future__ import annotations

import json
import re
from html import escape
from urllib.parse import quote

UNKNOWN = "–"
"""Stands where something was not measured or not recorded."""

_HARMLESS = re.compile(r"[\w./:@+,=() -]+")
_NO_WORD = re.compile(r"[^\w .,-]|_")
_MARKUP = re.compile(r"[&<>`|*\\\[\]~$!\"]")


def code(value: str | None) -> str:
    """`value` in the font of code, on one line."""
    line = _line(value or "")
    if not line:
        return UNKNOWN
    if _HARMLESS.fullmatch(line):
        return f"`{line}`"
    return f"<code>{_NO_WORD.sub(_entity, line)}</code>"


def html(value: str) -> str:
    """`value` in the font of code where Markdown does not count, as in a summary."""
    return f"<code>{escape(_line(value))}</code>"


def plain(value: str) -> str:
    """`value` as it reads, on one line; an address in it remains one."""
    return _MARKUP.sub(_entity, _line(value))


def literal(value: str) -> str:
    """The Python literal of `value`."""
    return json.dumps(value, ensure_ascii=False)


def address(*parts: str) -> str:
    """The parts of a path joined by slashes, for the target of a link: never another host."""
    return "/".join(quote(part.strip("/"), safe="/") for part in parts)


def _line(value: str) -> str:
    return " ".join(value.split())


def _entity(match: re.Match[str]) -> str:
    # A character reference never counts as markup.
    return f"&#{ord(match[0])};"
