"""A state dict that `torch.save` wrote, read without ever running what a pickle may ask for.

Only torch's zip format is read, and by `weights_only` loading alone. The tensors are mapped from
the file anew for every part, so that what was read of it does not stay in memory.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from gated_plugin.convert.matrices import Matrix, slices
from gated_plugin.dictionaries import require_finite
from gated_plugin.errors import GatedError

LARGEST_PICKLE = 1 << 20
"""Bytes. That of an SAE has some hundred: the numbers lie beside it in the archive."""


@dataclass(frozen=True)
class Checkpoint:
    """A state dict in a file, with nothing in it but plain tensors of floating-point numbers."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the names and shapes.

        Raises:
            GatedError: the file is no such state dict; whatever it holds, nothing of it was run.
        """
        _require_plain_archive(path)
        found = _load(path)
        if isinstance(found, dict) and isinstance(found.get("ae"), dict):
            _refuse(path, "it is the backup of an unfinished training, with biases still scaled")
        for name, value in found.items() if isinstance(found, dict) else ():
            if not (isinstance(name, str) and _is_plain(value)):
                _refuse(path, f"its entry {str(name)!r} is no plain tensor of floats")
        if not (isinstance(found, dict) and found):
            _refuse(path, "it is no table of tensors")
        if sum(value.numel() * value.itemsize for value in found.values()) > path.stat().st_size:
            _refuse(path, "its tensors have more numbers than the file")
        return cls(path, {name: tuple(value.shape) for name, value in found.items()})

    def matrix(self, name: str) -> Matrix:
        """A matrix of it."""
        stored = _load(self.path)[name]
        # A Linear that began as the transpose of another keeps its columns together, not its rows.
        if stored.stride(0) < stored.stride(1):
            return self._by_rows(name, stored.shape[::-1], lambda mapped: mapped.T).T
        return self._by_rows(name, stored.shape, lambda mapped: mapped)

    def _by_rows(self, name: str, shape: Sequence[int], view: Callable[[Tensor], Tensor]) -> Matrix:
        """A matrix, seen through `view` so that its rows lie together."""
        n_rows, n_columns = shape

        def read(rows: slice, columns: slice) -> Tensor:
            first, last, _ = rows.indices(n_rows)
            left, right, _ = columns.indices(n_columns)
            found = torch.empty(last - first, right - left, dtype=_load(self.path)[name].dtype)
            for some in slices(last - first, n_columns):
                mapped = view(_load(self.path)[name].detach())[first:last]
                found[some] = mapped[some, columns]
            return found

        return Matrix(name, self.path, (n_rows, n_columns), read)

    def vector(self, name: str) -> Tensor:
        """A vector of it, in float64.

        Raises:
            GatedError: one of its numbers is NaN or infinite.
        """
        found = torch.empty(self.shapes[name], dtype=torch.float64)
        found.copy_(_load(self.path)[name].detach())
        require_finite(found, name, self.path)
        return found


def _require_plain_archive(path: Path) -> None:
    """Nothing is compressed, so that nothing is larger in memory than in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError):
        _refuse(path, "it is not in torch's zip format, and a bare pickle is never opened")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        _refuse(path, "parts of it are compressed, which torch never does")
    pickled = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if any(entry.file_size > LARGEST_PICKLE for entry in pickled):
        _refuse(path, f"its pickle has more than {LARGEST_PICKLE:,} bytes")


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        _refuse(path, "it asks for more than tensors, and that could run any program")
    except Exception as error:  # torch raises many kinds over an archive that is damaged
        cause = str(error).strip() or type(error).__name__
        _refuse(path, f"torch cannot read it ({cause.splitlines()[0]})")


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        and not value.is_quantized
    )


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GatedError(
        f"{path} is not read: {reason}; ask its author for the state dict as safetensors."
    )
