"""Gated dictionaries from and to the formats of others, each conversion audited.

In: folders of SAELens, runs, dictionary_learning's `ae.pt`, SAEBench's repositories. Out: `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gated_plugin.errors import GatedError

FORMATS = ("saelens", "jumprelu", "dictionary_learning", "bf16")
FILENAME = "conversion.json"


@dataclass(frozen=True)
class Conversion:
    """A dictionary that was written in another format."""

    folder: Path
    """Everything of it, with conversion.json."""
    target_format: str
    record: dict[str, Any]
    """What conversion.json says: source, files with their hashes, versions, audit."""

    @property
    def figures(self) -> dict[str, Any]:
        """The audit in a few numbers, for a terminal."""
        audit = self.record["audit"]
        return {
            "compared on": f"{audit['activations']['rows']} {audit['activations']['of']}",
            "features differ by": audit["features"]["relative"],
            "reconstructions differ by": audit["reconstructions"]["relative"],
            "firings": audit["firings"],
            "flips": audit["flips"]["count"],
            "flips beyond rounding": audit["flips"]["beyond_rounding"],
            "least survival": audit["survival"]["minimum"],
            "loss recovered changes by": audit["loss_recovered"].get("change"),
        }


def convert(
    source: Path | str,
    target_format: str,
    out: Path,
    *,
    activations: Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Write the gated dictionary `source` into the folder `out` in another format, and audit it.

    Needs the memory of some hundred MB, however large the dictionary; only where the language model
    is at hand, to measure the loss recovered, is a whole one loaded.

    Args:
        source: a run, a folder of SAELens or of dictionary_learning (or its ae.pt), or a folder of
            a repository on the Hub: `org/name/folder`.
        target_format: one of `FORMATS`.
        out: a folder that is not there, or holds an earlier conversion, which is replaced.
        activations: a file with "activations" [rows, d_in] to compare on; by default those that
            the run or the publication recorded.
        revision, token: for the Hub.
        quiet: without progress bars.
        report: takes a line when each step is done.

    Raises:
        GatedError: the source is damaged or hostile, the format is unknown or cannot hold it, `out`
            is in use, or the result differs by more than rounding; nothing is left behind.
    """
    from gated_plugin.convert.conversion import converted

    if target_format not in FORMATS:
        raise GatedError(
            f"There is no format {target_format!r}; give one of {', '.join(FORMATS)}, as in "
            "`gated-hub convert runs/quickstart --to jumprelu --out twin`."
        )
    return converted(source, target_format, out, activations, revision, token, quiet, report)
