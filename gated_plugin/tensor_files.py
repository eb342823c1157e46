"""safetensors files, read and written in blocks: a dictionary of many gigabytes needs the memory
of one block.

The header is checked here, before anything is read by its word: a file from the Hub may be hostile.
The format: eight bytes with the header's length, the header (JSON, a member per tensor with
`dtype`, `shape` and `data_offsets`), then the tensors one after the other, without holes.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_BYTES = 8
LARGEST_HEADER = 1 << 20
"""Bytes. That of an SAE has some hundred; safetensors itself would parse a hundred million."""
LARGEST_SIZE = 1 << 63
MOST_DIMENSIONS = 8
BLOCK_BYTES = 1 << 23
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class TensorInfo(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """As safetensors names it: F32."""
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of its first dimension; of the number where there is none."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file with a header that can be trusted."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read and check the header.

        Raises:
            GatedError: the file is missing, or what it says of itself cannot be.
        """
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                header, begin = _header(file, size, path)
        except FileNotFoundError:
            raise GatedError(f"{path} is missing; make or fetch it again.") from None
        except OSError as error:
            raise GatedError(
                f"{path} cannot be read ({error.strerror}); make or fetch it again."
            ) from None
        return cls(path, _tensors(header, begin, size, path))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, in memory of their own and in the file's type."""
        import torch

        info = self.tensors[name]
        stop = info.shape[0] if stop is None and info.shape else stop
        shape = (stop - start, *info.shape[1:]) if stop is not None else ()
        rows = torch.empty(shape, dtype=getattr(torch, TORCH_NAMES[info.dtype]))
        if rows.numel():
            with self.path.open("rb") as file:
                file.seek(info.start + start * info.row_bytes)
                self._fill(file, rows)
        return rows

    def head(self) -> bytes:
        """What comes before the tensors."""
        with self.path.open("rb") as file:
            return file.read(min((info.start for info in self.tensors.values()), default=0))

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A tensor in blocks of some rows, each with the number of its first one."""
        info = self.tensors[name]
        rows = max(1, BLOCK_BYTES // max(1, info.row_bytes))
        length = info.shape[0] if info.row_bytes else 0  # any number of rows without bytes
        for start in range(0, length, rows):
            yield start, self.read(name, start, min(start + rows, length))

    def _fill(self, file: BinaryIO, rows: Tensor) -> None:
        import torch

        buffer = memoryview(rows.view(-1).view(torch.uint8).numpy())
        while buffer:
            read = file.readinto(buffer)  # type: ignore[attr-defined]  # of BufferedReader
            if not read:
                _refuse(self.path, "it became shorter while it was read")
            buffer = buffer[read:]


class Stream(NamedTuple):
    """A tensor that is still to be written."""

    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]
    """Its values from the first to the last, in blocks of any size and of this type."""


def write_tensors(path: Path, streams: Mapping[str, Stream]) -> None:
    """Write a safetensors file that needs the memory of one block.

    The largest items come first, as safetensors orders them, so that each tensor is aligned.
    """
    order = sorted(streams, key=lambda name: (-ITEM_BYTES[streams[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dtype, shape, _ = streams[name]
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for name in order:
            for block in streams[name].blocks:
                file.write(raw(block))
        if file.tell() != LENGTH_BYTES + len(text) + end:
            raise ValueError(f"The blocks for {path} are not of the shapes that were promised.")


def whole(tensor: Tensor) -> Stream:
    """A tensor in memory, to be written by `write_tensors`."""
    names = {torch_name: name for name, torch_name in TORCH_NAMES.items()}
    dtype = names[str(tensor.dtype).removeprefix("torch.")]
    return Stream(dtype, tuple(tensor.shape), in_blocks(tensor))


def in_blocks(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in memory, with any strides, in blocks of some rows."""
    import torch

    rows = torch.atleast_1d(tensor.detach())
    row_bytes = rows.itemsize * math.prod(rows.shape[1:])
    yield from rows.split(max(1, BLOCK_BYTES // max(1, row_bytes)))


def raw(block: Tensor) -> memoryview:
    """The bytes of a block as a file holds them."""
    import torch

    return memoryview(block.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def check_header(path: Path) -> None:
    """Raise `GatedError` unless `path` is a safetensors file with a header that can be trusted."""
    TensorFile.open(path)


def _header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the tensors begin."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
        _refuse(path, "it is shorter than its header says")
    if length > LARGEST_HEADER:
        _refuse(path, f"its header has {length:,} bytes, where an SAE's has some hundred")
    try:
        text = file.read(length).decode()
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        _refuse(path, "its header is no valid JSON")
    if not isinstance(header, dict):
        _refuse(path, "its header is no table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, "its metadata is no table of texts")
    return header, LENGTH_BYTES + length


def _tensors(header: dict[str, Any], begin: int, size: int, path: Path) -> dict[str, TensorInfo]:
    found = {name: _tensor(name, value, begin, path) for name, value in header.items()}
    end = begin
    for name, info in sorted(found.items(), key=lambda item: item[1][2:]):
        if info.start != end:
            begun = f"{_named(name)} begins at byte {info.start:,}"
            _refuse(path, f"{begun}, not where the one before ends")
        end = info.stop
    if end != size:
        _refuse(path, f"its tensors end at byte {end:,} of {size:,}")
    return found


def _tensor(name: str, value: Any, begin: int, path: Path) -> TensorInfo:
    if not isinstance(value, dict) or str(value.get("dtype")) not in ITEM_BYTES:
        _refuse(path, f"{_named(name)} has no type out of {', '.join(ITEM_BYTES)}")
    shape, offsets = _sizes(value.get("shape")), _sizes(value.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        _refuse(path, f"the shape or the place of {_named(name)} is no list of whole numbers")
    if math.prod(shape) * ITEM_BYTES[value["dtype"]] != offsets[1] - offsets[0]:
        _refuse(path, f"{_named(name)} has not the bytes of its shape")
    return TensorInfo(value["dtype"], shape, begin + offsets[0], begin + offsets[1])


def _sizes(values: Any) -> tuple[int, ...] | None:
    if not isinstance(values, list) or len(values) > MOST_DIMENSIONS:
        return None
    if not all(type(n) is int and 0 <= n < LARGEST_SIZE for n in values):
        return None
    return tuple(values)


def _named(name: str) -> str:
    """A tensor's name, which may be of any length and any characters, for a sentence."""
    return reprlib.repr(name)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GatedError(f"{path} is no sound safetensors file: {reason}; make or fetch it again.")
