"""What an index entry says of one SAE, by its dotted name, such as `training.lr`.

An index comes from the Hub, where anybody may have written it: a fact is of the right kind, or
refused, or None where the entry has none.
"""

from __future__ import annotations

import math
from reprlib import Repr
from typing import TYPE_CHECKING, Any, NoReturn

from gated_plugin.errors import GatedError
from gated_plugin.recipes import SYNTHETIC

if TYPE_CHECKING:
    from gated_plugin.hub.index import Entry

LARGEST_COUNT = 2**63

_REPR = Repr()
_REPR.maxstring = 80


def sae_id(entry: Entry) -> str:
    """The id, which every entry has and a terminal can show.

    Raises:
        GatedError: there is none.
    """
    name = text(entry, "id")
    if not name or not name.isprintable():
        _refuse(entry, "id", name, "a name")
    return name


def is_synthetic(entry: Entry) -> bool:
    """Whether the SAE was trained on synthetic activations, and so is of no language model."""
    return text(entry, "model") == SYNTHETIC


def number(entry: Entry, name: str) -> float | None:
    """A finite number.

    Raises:
        GatedError: it is something else.
    """
    value = _found(entry, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(entry, name, value, "a number")
    if not -LARGEST_COUNT < value < LARGEST_COUNT or not math.isfinite(value):
        _refuse(entry, name, value, "a finite number")
    return float(value)


def count(entry: Entry, name: str) -> int | None:
    """A whole number, zero or more.

    Raises:
        GatedError: it is something else.
    """
    value = _found(entry, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_COUNT:
        _refuse(entry, name, value, "a count")
    return value


def text(entry: Entry, name: str) -> str | None:
    """A text that UTF-8 can hold, which JSON's escapes do not guarantee.

    Raises:
        GatedError: it is something else.
    """
    value = _found(entry, name)
    if value is None:
        return None
    if not isinstance(value, str) or not is_encodable(value):
        _refuse(entry, name, value, "a text")
    return value


def texts(entry: Entry, name: str) -> list[str]:
    """A list of texts; empty where there is none.

    Raises:
        GatedError: it is something else.
    """
    value = _found(entry, name)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        _refuse(entry, name, value, "a list of texts")
    if not all(isinstance(item, str) and is_encodable(item) for item in value):
        _refuse(entry, name, value, "a list of texts")
    return list(value)


def flag(entry: Entry, name: str) -> bool | None:
    """Yes or no.

    Raises:
        GatedError: it is something else.
    """
    value = _found(entry, name)
    if value is not None and not isinstance(value, bool):
        _refuse(entry, name, value, "true or false")
    return value


def short(value: object) -> str:
    """`value` as an error shows it: on one line of bounded length, whoever wrote it."""
    return _REPR.repr(value).encode("ascii", "backslashreplace").decode()


def is_encodable(value: str) -> bool:
    """Whether UTF-8 can hold `value`."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _found(entry: Entry, name: str) -> Any:
    value: Any = entry
    for key in name.split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            _refuse(entry, name.rpartition(".")[0], value, "a section")
        value = value.get(key)
    return value


def _refuse(entry: Entry, name: str, value: object, expected: str) -> NoReturn:
    raise GatedError(
        f"The index says of {short(entry.get('id'))} that {name} is {short(value)}, which is not "
        f"{expected}; push that SAE again, or everything to another repository."
    )
