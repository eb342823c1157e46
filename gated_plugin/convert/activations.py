"""The activations that a conversion is audited on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gated_plugin.convert.weights import Source
from gated_plugin.dictionaries import ACTIVATIONS, read_rows

ROWS = 256


class Activations(NamedTuple):
    """Rows [≤ `ROWS`, d_in] in float64."""

    rows: Tensor
    origin: str
    """Where they are from, to be said in the audit."""


def recorded(source: Source, given: Path | None) -> Activations:
    """Those in the file `given`, else those recorded with the source, else random ones.

    Raises:
        GatedError: the file is missing, damaged or empty, or does not fit the source.
    """
    if given is not None:
        return _read(given, source, "activations of a given file")
    if source.run is not None and source.run.activations.exists():
        return _read(source.run.activations, source, "held-out activations of the run")
    if (source.folder / ACTIVATIONS).exists():
        return _read(source.folder / ACTIVATIONS, source, "activations published with it")
    b_dec = source.weights.b_dec
    noise = torch.randn(
        ROWS, len(b_dec), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return Activations(
        b_dec + noise,
        "random rows around b_dec with unit scale, for no recorded ones were at hand: on text other "
        "features fire, and more or fewer of them",
    )


def _read(path: Path, source: Source, origin: str) -> Activations:
    found = read_rows(path, "activations", (None, source.cfg.d_in), ROWS)
    return Activations(found.double(), origin)
