"""The YAML at the head of a model card, and the tags that a hub makes of it."""

from __future__ import annotations

import json
import re
from typing import Any

from gated_plugin.strict_yaml import strict_yaml

BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.S | re.M)


def front_matter(card: str) -> dict[str, Any]:
    """The metadata of `card` as JSON has it (a date is text); empty when it has none.

    Raises:
        ValueError: it is not YAML, or no mapping; the text says where.
    """
    block = BLOCK.match(card)
    try:
        data = strict_yaml(block[1]) if block else None
        data = json.loads(json.dumps(data, default=str, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The metadata is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError("The metadata is not a mapping of names to values.")
    return data


def tags(data: dict[str, Any]) -> list[str]:
    """What `list_models(filter=...)` finds a model by: its own tags and some of its other fields."""
    found = [*_several(data.get("tags")), *_several(data.get("library_name"))]
    for field, prefix in (
        ("base_model", "base_model"),
        ("datasets", "dataset"),
        ("license", "license"),
    ):
        found += [f"{prefix}:{value}" for value in _several(data.get(field))]
    return found


def _several(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(item) for item in values if item is not None]
