"""How much memory a process needs to load a dictionary and to encode with it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

import gated_plugin
from gated_plugin.dictionaries import CFG, TYPES, WEIGHTS
from gated_plugin.tensor_files import BLOCK_BYTES, Stream, whole, write_tensors

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured(NamedTuple):
    bytes: int
    """Of the loaded tensors."""
    loading: float
    """Peak of memory while loading, over `bytes`."""
    encoding: float
    """The same while the first tokens are encoded; what was loaded counts."""


def measured(d_in: int, d_sae: int, stored: str, asked: str | None) -> Measured:
    """Load a random dictionary from a file in the type `stored`, and encode 16 tokens."""
    with TemporaryDirectory() as place:
        small, folder = Path(place) / "small", Path(place) / "large"
        _write(small, 64, 256, stored)
        _write(folder, d_in, d_sae, stored)
        # What comes once in a process: imports and compiled kernels.
        gated_plugin.load(small, dtype=asked).encode_sparse(torch.ones(16, 64))
        before = start_of_peak()
        sae = gated_plugin.load(folder, dtype=asked)
        loading = peak() - before
        sae.encode_sparse(torch.randn(16, d_in))
        size = sum(tensor.nbytes for tensor in sae.state_dict().values())
        return Measured(size, loading / size, (peak() - before) / size)


def measure_in_a_child(answer: Connection, *arguments: object) -> None:
    """`measured`, for a forked process."""
    answer.send(measured(*arguments))


def _write(folder: Path, d_in: int, d_sae: int, dtype: str) -> None:
    folder.mkdir()
    cfg = gated_plugin.GatedSAEConfig(d_in=d_in, d_sae=d_sae, dtype=dtype)
    (folder / CFG).write_text(json.dumps(cfg.to_dict()))

    def blocks(rows: int, columns: int) -> Iterator[torch.Tensor]:
        step = max(1, BLOCK_BYTES // (4 * columns))
        for start in range(0, rows, step):
            block = torch.randn(min(step, rows - start), columns)
            yield (block / columns**0.5).to(getattr(torch, dtype))

    streams = {name: whole(torch.zeros(d_sae)) for name in ("b_gate", "b_mag", "r_mag")}
    streams["b_dec"] = whole(torch.zeros(d_in, dtype=getattr(torch, dtype)))
    for name, rows, columns in (("W_enc", d_in, d_sae), ("W_dec", d_sae, d_in)):
        streams[name] = Stream(TYPES[dtype], (rows, columns), blocks(rows, columns))
    write_tensors(folder / WEIGHTS, streams)


def start_of_peak() -> int:
    """Bytes in use now; `peak` counts from here."""
    CLEAR_REFS.write_text("5")  # the peak begins anew
    return peak()


def peak() -> int:
    """Most bytes in use at one time."""
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    _, d_in, d_sae, stored, asked = sys.argv
    print(measured(int(d_in), int(d_sae), stored, asked))
