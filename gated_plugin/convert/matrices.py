"""Matrices in files, read in parts, so that a conversion needs the memory of one part.

Everything is computed in float64 and rounded once, when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gated_plugin.dictionaries import require_finite
from gated_plugin.errors import GatedError
from gated_plugin.tensor_files import TORCH_NAMES, Stream, TensorFile

NUMBERS = 1 << 23
"""Of a part: 64 MB in float64. An audit holds some ten of them."""


@dataclass(frozen=True)
class Matrix:
    """A matrix in a file; `T` is the same one, transposed."""

    name: str
    path: Path
    shape: tuple[int, int]
    read: Callable[[slice, slice], Tensor]
    """Some rows and columns, in the type of the file."""

    @property
    def T(self) -> Matrix:
        """[columns, rows]"""
        return replace(
            self,
            shape=self.shape[::-1],
            read=lambda rows, columns: self.read(columns, rows).T,
        )

    def part(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """Some rows and columns, in float64 and in memory of their own.

        Raises:
            GatedError: one of them is NaN or infinite.
        """
        stored = self.read(rows, columns)
        found = torch.empty(stored.shape, dtype=torch.float64).copy_(stored)
        require_finite(found, self.name, self.path)
        return found

    def row_parts(self) -> Iterator[slice]:
        """All rows, as many at a time as one part may hold."""
        return slices(*self.shape)


def slices(count: int, width: int) -> Iterator[slice]:
    """`count` rows of `width` numbers, as many at a time as one part may hold."""
    step = max(1, NUMBERS // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def matrix(file: TensorFile, name: str) -> Matrix:
    """A matrix of a safetensors file."""

    info = file.tensors[name]
    n_rows, n_columns = info.shape

    def read(rows: slice, columns: slice) -> Tensor:
        first, last, _ = rows.indices(n_rows)
        left, right, _ = columns.indices(n_columns)
        if right - left == n_columns:
            return file.read(name, first, last)
        part = torch.empty(
            last - first, right - left, dtype=getattr(torch, TORCH_NAMES[info.dtype])
        )
        begin = info.start + left * part.itemsize
        with file.path.open("rb", buffering=0) as opened:
            for row, out in zip(range(first, last), part.view(torch.uint8).numpy(), strict=True):
                opened.seek(begin + row * info.row_bytes)
                if opened.readinto(out) != len(out):
                    raise GatedError(
                        f"{file.path} became shorter while it was read; fetch it again."
                    )
        return part

    return Matrix(name, file.path, (n_rows, n_columns), read)


def vector(file: TensorFile, name: str) -> Tensor:
    """A vector of a safetensors file, in float64.

    Raises:
        GatedError: one of its numbers is NaN or infinite.
    """
    found = file.read(name).double()
    require_finite(found, name, file.path)
    return found


def scaled(
    values: Matrix, dtype: str, *, rows: Tensor | None = None, columns: Tensor | None = None
) -> Stream:
    """A matrix to be written, each row and each column times a factor of its own.

    Args:
        dtype: to round to, as safetensors names it.
        rows, columns: the factors, float64.
    """

    def blocks() -> Iterator[Tensor]:
        for chosen in values.row_parts():
            block = values.part(chosen)
            if rows is not None:
                block *= rows[chosen, None]
            if columns is not None:
                block *= columns
            yield rounded(block, dtype, values.name)

    return Stream(dtype, values.shape, blocks())


def rounded(values: Tensor, dtype: str, name: str) -> Tensor:
    """Finite float64 numbers in a smaller type.

    Raises:
        GatedError: one of them is too large for it.
    """
    found = values.to(getattr(torch, TORCH_NAMES[dtype]))
    if not found.isfinite().all():
        raise GatedError(
            f"{name} of the result is beyond what {TORCH_NAMES[dtype]} can hold, as where r_mag is "
            "very large; convert to saelens or dictionary_learning, which keep r_mag by itself."
        )
    return found
