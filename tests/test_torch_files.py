"""Files for `torch.load`: what torch.save would have written, without a copy in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from same_values import assert_same

from gated_plugin import tensor_files, torch_files

TENSORS = {
    "matrix": torch.randn(7, 5),
    "transposed": torch.randn(7, 5).T,
    "every third column": torch.randn(4, 30)[:, ::3],
    "three dimensions": torch.randn(2, 3, 4).permute(2, 0, 1),
    "no rows": torch.empty(0, 3),
    "no columns": torch.empty(3, 0),
    "scalar": torch.tensor(2.5),
    "integer scalar": torch.tensor(7),
    "integers": torch.arange(11),
    "booleans": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "double": torch.randn(3, dtype=torch.float64),
    "half": torch.randn(3, 3).half(),
    "bfloat16": torch.randn(3, 3).bfloat16().T,
    "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
    "shared": torch.ones(6)[2:4],
}
STATE = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": TENSORS["transposed"]}, 1: {}},
    "param_groups": [{"lr": 1e-3, "betas": (0, 0.999), "fused": None, "params": [0, 1]}],
    "started_fine_tuning": False,
    "name": "γ",
    "twice": [TENSORS["matrix"], TENSORS["matrix"]],
}
READINGS = [{"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row or two to a block."""
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", 24)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("value", [*TENSORS.values(), STATE, 3.5], ids=[*TENSORS, "state", "float"])
def test_is_read_as_what_torch_writes(value: Any, reading: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.pt", tmp_path / "theirs.pt"
    torch_files.save(value, ours)
    torch.save(value, theirs)
    assert_same(torch.load(ours, **reading), torch.load(theirs, **reading))


def test_a_tensor_that_occurs_twice_is_written_once(tmp_path: Path) -> None:
    torch_files.save(STATE, tmp_path / "a.pt")
    one, other = torch.load(tmp_path / "a.pt")["twice"]
    assert one is other


def test_the_archive_is_sound_and_aligned(tmp_path: Path) -> None:
    torch_files.save(TENSORS, tmp_path / "a.pt")
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None
    reader = torch._C.PyTorchFileReader(str(tmp_path / "a.pt"))
    offsets = [reader.get_record_offset(f"data/{key}") for key in range(len(TENSORS))]
    assert not any(offset % torch_files.ALIGNMENT for offset in offsets)
