"""What a person wrote into a README.md, and that survives when its card is written again."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.strict_yaml import strict_yaml

BEGIN = (
    "<!-- gated-hub:notes What you write between this line and the next comment is kept when "
    "gated-hub writes this card again. -->"
)
END = "<!-- gated-hub:end-of-notes -->"

# Of limited length: a card with many marks that never end takes no longer than another.
_BEGIN = re.compile(r"<!--\s{0,20}gated-hub:notes\b[^>]{0,500}-->")
_END = re.compile(r"<!--\s{0,20}gated-hub:end-of-notes\b[^>]{0,500}-->")
_MARKS = "`<!-- gated-hub:notes -->` and `<!-- gated-hub:end-of-notes -->`"


class Kept(NamedTuple):
    """What of an existing README.md goes into the new one."""

    notes: str
    """What stands between the two comments, in Markdown, without blank lines around it."""
    metadata: dict[str, Any]
    """Its front matter."""


def kept(text: str | None, where: str) -> Kept:
    """What survives of the README.md `text` when the card is written over it.

    A card of ours has the two comments. A README.md that a person wrote has none, and is replaced
    only if there is nothing in it but front matter, which the Hub's form for a new repository
    writes.

    Args:
        text: None where there is no such file.
        where: what to call it in an error, such as `README.md of org/name`.

    Raises:
        GatedError: a comment is missing or there twice; or it is a person's and would be lost.
    """
    if text is None:
        return Kept("", {})
    section = kept_section(text, where)
    metadata, body = _parted(text, where)
    if section is None and body.strip():
        raise GatedError(
            f"The {where} was not written by gated-hub, and its words would be lost; to keep them, "
            f"put them between the lines {_MARKS}, and run the same command again."
        )
    return Kept(section or "", metadata)


def kept_section(text: str, where: str = "README.md") -> str | None:
    """What stands between the two comments; None when `text` has neither.

    Raises:
        GatedError: they are not both there, once each and in their order.
    """
    text = text.replace("\r\n", "\n")
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0].end() > ends[0].start():
        raise GatedError(
            f"Which words of the {where} are to be kept cannot be told: the lines {_MARKS} must be "
            "there once each, in this order; mend that and run the same command again."
        )
    section = text[begins[0].end() : ends[0].start()]
    return section.strip("\n") if section.strip() else ""


def _parted(text: str, where: str) -> tuple[dict[str, Any], str]:
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return {}, text
    try:
        metadata = strict_yaml(block[2])
    except ValueError:
        metadata = False
    if metadata is not None and not isinstance(metadata, dict):
        raise GatedError(
            f"The YAML at the head of the {where} cannot be read, so that it cannot be kept; mend "
            "or remove it and run the same command again."
        )
    return metadata or {}, text[block.end() :]
