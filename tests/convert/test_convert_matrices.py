"""Parts of matrices in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gated_plugin.convert.checkpoint import Checkpoint
from gated_plugin.convert.matrices import Matrix, matrix, rounded, scaled, slices
from gated_plugin.errors import GatedError
from gated_plugin.tensor_files import TensorFile

VALUES = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))


def of_safetensors(folder: Path, values: Tensor) -> Matrix:
    save_file({"before": torch.ones(3), "W": values.contiguous()}, folder / "w.safetensors")
    return matrix(TensorFile.open(folder / "w.safetensors"), "W")


def of_checkpoint(folder: Path, values: Tensor) -> Matrix:
    torch.save({"W": values}, folder / "w.pt")
    return Checkpoint.open(folder / "w.pt").matrix("W")


def of_transposed_checkpoint(folder: Path, values: Tensor) -> Matrix:
    return of_checkpoint(folder, values.T.contiguous().T)


@pytest.mark.parametrize("store", [of_safetensors, of_checkpoint, of_transposed_checkpoint])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("numbers", [1, 15, 1 << 20])
def test_every_part_is_that_of_the_whole(
    store: Callable[[Path, Tensor], Matrix],
    dtype: torch.dtype,
    numbers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gated_plugin.convert.matrices.NUMBERS", numbers)
    values = VALUES.to(dtype)
    stored, wanted = store(tmp_path, values), values.double()
    for rows in (slice(None), slice(0, 3), slice(4, 9), slice(10, 11)):
        for columns in (slice(None), slice(0, 2), slice(3, 6), slice(6, 7)):
            assert torch.equal(stored.part(rows, columns), wanted[rows, columns])
            assert torch.equal(stored.T.part(columns, rows), wanted.T[columns, rows])
    assert stored.T.shape == (7, 11)
    assert stored.part().is_contiguous() and stored.T.part().is_contiguous()


def test_slices_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gated_plugin.convert.matrices.NUMBERS", 20)
    assert list(slices(7, 8)) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert list(slices(2, 1000)) == [slice(0, 1), slice(1, 2)]


def test_scaling_is_by_row_and_by_column_in_float64(tmp_path: Path) -> None:
    rows, columns = torch.rand(11, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    stream = scaled(of_safetensors(tmp_path, VALUES), "F32", rows=rows, columns=columns)
    wanted = (VALUES.double() * rows[:, None] * columns).float()
    assert torch.equal(torch.cat(list(stream.blocks)), wanted)


@pytest.mark.parametrize(("dtype", "largest"), [("F32", 3.4e38), ("BF16", 3.38e38)])
def test_a_number_that_does_not_fit_is_refused(dtype: str, largest: float) -> None:
    fits = torch.tensor([largest, -largest], dtype=torch.float64)
    assert rounded(fits, dtype, "W").isfinite().all()
    with pytest.raises(GatedError, match="W of the result is beyond what"):
        rounded(fits * 1.1, dtype, "W")
