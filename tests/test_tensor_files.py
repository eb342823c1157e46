"""safetensors files: equal to safetensors' own reading, and refused where anything is amiss."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gated_plugin import tensor_files
from gated_plugin.errors import GatedError
from gated_plugin.tensor_files import (
    ITEM_BYTES,
    LARGEST_HEADER,
    TORCH_NAMES,
    Stream,
    TensorFile,
    check_header,
    whole,
    write_tensors,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of the tensors here to a block."""
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", 24)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50
    return numbers.to(dtype)


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def write(path: Path, header: Any, data: bytes = b"\0" * 12) -> None:
    """A file with this header: a JSON value or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def refusal(path: Path) -> str:
    with pytest.raises(GatedError) as caught:
        check_header(path)
    said = str(caught.value)
    assert said.startswith(f"{path} ")
    assert said.endswith("; make or fetch it again.")
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize("name", sorted(ITEM_BYTES))
def test_every_type_is_read_as_safetensors_reads_it(path: Path, name: str) -> None:
    dtype = getattr(torch, TORCH_NAMES[name])
    tensors = {"matrix": random_tensor((7, 3), dtype), "one": random_tensor((), dtype)}
    save_file({**tensors, "none": torch.empty(0, 3, dtype=dtype)}, path)
    file = TensorFile.open(path)
    assert {info.dtype for info in file.tensors.values()} == {name}
    for key, expected in load_file(path).items():
        assert file.tensors[key].shape == expected.shape
        assert file.read(key).dtype == dtype
        assert torch.equal(file.read(key), expected)


@pytest.mark.parametrize(("start", "stop"), [(0, None), (2, 5), (6, None), (3, 3)])
def test_rows_are_those_of_the_slice(path: Path, start: int, stop: int | None) -> None:
    save_file({"first": random_tensor((4,)), "matrix": random_tensor((7, 3))}, path)
    found = TensorFile.open(path).read("matrix", start, stop)
    assert torch.equal(found, random_tensor((7, 3))[start:stop])


def test_what_is_read_is_memory_of_its_own(path: Path) -> None:
    save_file({"matrix": random_tensor((7, 3))}, path)
    file = TensorFile.open(path)
    file.read("matrix").zero_()
    assert torch.equal(file.read("matrix"), random_tensor((7, 3)))


@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_the_rows_in_their_order(path: Path) -> None:
    save_file({"matrix": random_tensor((7, 3)), "none": torch.empty(0, 3)}, path)
    file = TensorFile.open(path)
    starts, blocks = zip(*file.blocks("matrix"), strict=True)
    assert starts == (0, 2, 4, 6)
    assert torch.equal(torch.cat(blocks), random_tensor((7, 3)))
    assert list(file.blocks("none")) == []


def test_any_number_of_rows_without_bytes_is_no_block(path: Path) -> None:
    write(path, {"a": f32([1 << 62, 0], [0, 0])}, b"")
    assert list(TensorFile.open(path).blocks("a")) == []


def test_what_is_written_is_what_safetensors_writes(path: Path, tmp_path: Path) -> None:
    tensors = {
        "W_enc": random_tensor((3, 5), torch.bfloat16),
        "r_mag": random_tensor((5,)),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 2, dtype=torch.float64),
    }
    write_tensors(path, {name: whole(tensor) for name, tensor in tensors.items()})
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert path.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_strided_tensors_and_blocks_of_any_size_are_written_in_order(path: Path) -> None:
    matrix = random_tensor((7, 3))
    split = Stream("F32", (7, 3), iter([matrix[:1], matrix[1:1], matrix[1:].T.contiguous().T]))
    write_tensors(path, {"split": split, "turned": whole(matrix.T)})
    found = load_file(path)
    assert torch.equal(found["split"], matrix)
    assert torch.equal(found["turned"], matrix.T)


@given(shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("written") / "a.safetensors"
    types = [torch.float32, torch.float16, torch.int8, torch.float64]
    tensors = {
        f"tensor {number}": random_tensor(tuple(shape), types[number])
        for number, shape in enumerate(shapes)
    }
    write_tensors(path, {name: whole(tensor) for name, tensor in tensors.items()})
    file = TensorFile.open(path)
    assert file.tensors.keys() == load_file(path).keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert file.tensors[name].start % tensor.element_size() == 0
        assert torch.equal(file.read(name), tensor)


@pytest.mark.parametrize("rows", [6, 8])
def test_blocks_of_other_shapes_than_promised_are_a_mistake_of_ours(path: Path, rows: int) -> None:
    with pytest.raises(ValueError, match="not of the shapes that were promised"):
        write_tensors(path, {"matrix": Stream("F32", (7, 3), [random_tensor((rows, 3))])})


def f32(shape: Any = (3,), offsets: Any = (0, 12), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "its header is no valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "its header is no valid JSON"),
    "UTF-16": (json.dumps({"a": f32()}).encode("utf-16"), "its header is no valid JSON"),
    "nested deeply": (b"[" * 100_000, "its header is no valid JSON"),
    "a number too long": (b'{"a": ' + b"9" * 5000 + b"}", "its header is no valid JSON"),
    "a list": ([], "its header is no table of tensors"),
    "metadata of numbers": ({"a": f32(), "__metadata__": {"format": 1}}, "is no table of texts"),
    "metadata that is a list": ({"a": f32(), "__metadata__": []}, "is no table of texts"),
    "a name twice": (b'{"a": %b, "a": %b}' % ((json.dumps(f32()).encode(),) * 2), "no valid JSON"),
    "a key twice": (
        b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}',
        "its header is no valid JSON",
    ),
    "no table for a tensor": ({"a": 1}, "'a' has no type out of F64, F32"),
    "no type": ({"a": {"shape": [3], "data_offsets": [0, 12]}}, "'a' has no type out of"),
    "an unknown type": ({"a": f32(dtype="F8_E4M3")}, "'a' has no type out of"),
    "a type that is no text": ({"a": f32(dtype=["F32"])}, "'a' has no type out of"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 12]}}, "is no list of whole numbers"),
    "a shape of fractions": ({"a": f32([3.0])}, "is no list of whole numbers"),
    "a shape of truths": ({"a": f32([True, 3])}, "is no list of whole numbers"),
    "a negative shape": ({"a": f32([-1, -3])}, "is no list of whole numbers"),
    "a shape of nothing": ({"a": f32([None])}, "is no list of whole numbers"),
    "one offset": ({"a": f32(offsets=[0])}, "is no list of whole numbers"),
    "three offsets": ({"a": f32(offsets=[0, 12, 12])}, "is no list of whole numbers"),
    "offsets of text": ({"a": f32(offsets=["0", "12"])}, "is no list of whole numbers"),
    "a negative offset": ({"a": f32(offsets=[-12, 0])}, "is no list of whole numbers"),
    "an offset of NaN": ({"a": f32(offsets=[float("nan"), 12])}, "is no list of whole numbers"),
    "a huge offset": ({"a": f32([0], [1 << 64, 1 << 64])}, "is no list of whole numbers"),
    "many dimensions": ({"a": f32([9] * 100_000)}, "is no list of whole numbers"),
    "a shape that overflows": (
        {"a": f32([1 << 62, 1 << 62])},
        "'a' has not the bytes of its shape",
    ),
    "too few bytes": ({"a": f32([2])}, "'a' has not the bytes of its shape"),
    "too many bytes": ({"a": f32([4])}, "'a' has not the bytes of its shape"),
    "offsets turned round": ({"a": f32(offsets=[12, 0])}, "'a' has not the bytes of its shape"),
    "a hole in front": ({"a": f32([2], [4, 12])}, "begins at byte"),
    "an overlap": (
        {"a": f32([2], [0, 8]), "b": f32([2], [4, 12])},
        "not where the one before ends",
    ),
    "the same place twice": ({"a": f32(), "b": f32()}, "not where the one before ends"),
    "a hole at the end": ({"a": f32([2], [0, 8])}, "its tensors end at byte"),
    "an end beyond the file": ({"a": f32([4], [0, 16])}, "its tensors end at byte"),
    "no tensors": ({}, "its tensors end at byte"),
    "a hostile name": ({"\n\0\x1b\ud800" + "a" * 100_000: 1}, "has no type out of"),
}


@pytest.mark.parametrize("kind", sorted(DAMAGED))
def test_a_damaged_header_is_refused(path: Path, kind: str) -> None:
    header, reason = DAMAGED[kind]
    write(path, header)
    said = refusal(path)
    assert reason in said
    assert said.isprintable()


def test_the_header_that_the_damaged_ones_vary_is_sound(path: Path) -> None:
    write(path, {"a": f32(), "__metadata__": {"format": "pt"}})
    assert TensorFile.open(path).tensors["a"][:2] == ("F32", (3,))
    assert torch.equal(load_file(path)["a"], torch.zeros(3))


@pytest.mark.parametrize("size", [0, 4, 7, 8, 20, -1])
def test_a_file_that_ends_early_is_refused(path: Path, size: int) -> None:
    save_file({"matrix": random_tensor((7, 3))}, path)
    path.write_bytes(path.read_bytes()[:size])
    reason = "its tensors end at byte" if size < 0 else "it is shorter than its header says"
    assert reason in refusal(path)


def test_bytes_after_the_last_tensor_are_refused(path: Path) -> None:
    save_file({"matrix": random_tensor((7, 3))}, path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert re.search(r"its tensors end at byte \d+ of \d+;", refusal(path))


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (LARGEST_HEADER + 1, "its header has 1,048,577 bytes"),
        (1 << 40, "it is shorter than its header says"),
        ((1 << 64) - 1, "it is shorter than its header says"),
    ],
)
def test_a_header_of_unlikely_length_is_not_even_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, length: int, reason: str
) -> None:
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER + 100)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("the header was read"))
    assert reason in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(path: Path) -> None:
    assert f"{path} is missing" in refusal(path)
    path.mkdir()
    assert f"{path} cannot be read (Is a directory)" in refusal(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(path: Path) -> None:
    save_file({"matrix": random_tensor((7, 3))}, path)
    file = TensorFile.open(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GatedError, match="it became shorter while it was read"):
        file.read("matrix")


@pytest.mark.parametrize("read", [TensorFile.open, check_header])
def test_a_header_is_checked_without_reading_a_tensor(
    path: Path, read: Callable[[Path], object]
) -> None:
    with path.open("wb") as file:
        text = json.dumps({"a": f32([1 << 38], [0, 1 << 40])}).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 40))  # a terabyte, of which the disk holds nothing
    read(path)
