"""What `torch.save` writes, written in blocks: tensors of many gigabytes need the memory of one.

torch.save needs a contiguous tensor for every contiguous tensor in the file, so that a transposed
one has to be copied whole. Here the copy is made on the way to the disk. The format: a zip archive
of uncompressed records, `data.pkl` with the object and `data/0`, `data/1`, … with the tensors'
bytes, which the pickle refers to by number.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor

from gated_plugin.tensor_files import in_blocks, raw

FORMAT_VERSION = b"3\n"
PROTOCOL = 2
"""Of the pickle: the one that `torch.load(weights_only=True)` reads."""
ALIGNMENT = 64
"""Bytes. Records begin at multiples of it, so that a mapped file can serve as memory."""
LOCAL_HEADER, SIZES_FIELD, FIELD_HEADER = 30, 20, 4
"""Bytes before a record: the zip format's fixed part, its field for sizes of 64 bits, and what
comes before any field's content."""
PADDING_FIELD = 0x4246


def save(value: Any, path: Path) -> None:
    """Write a file that `torch.load` reads, with all the tensors in `value` contiguous.

    Args:
        value: what pickle can write; its tensors are plain ones, on any device.
    """
    described = io.BytesIO()
    pickler = _Pickler(described, PROTOCOL)
    pickler.dump(value)
    with path.open("wb") as file, ZipFile(file, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", described.getvalue())
        archive.writestr(f"{path.stem}/byteorder", sys.byteorder)
        for key, tensor in enumerate(pickler.tensors):
            record = _record(f"{path.stem}/data/{key}", file.tell())
            with archive.open(record, "w", force_zip64=True) as data:
                for block in in_blocks(tensor):
                    data.write(raw(block))
        archive.writestr(f"{path.stem}/version", FORMAT_VERSION)


class _Storage(NamedTuple):
    """In the pickle, the memory of a tensor that the archive holds."""

    key: int
    tensor: Tensor


class _Pickler(pickle.Pickler):
    """Collects the tensors, and refers to them as torch does."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[Tensor] = []

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return NotImplemented
        storage = _Storage(len(self.tensors), value)
        self.tensors.append(value)
        strides = torch.empty(value.shape, device="meta").stride()
        hooks: OrderedDict[str, Any] = OrderedDict()
        layout = (storage, 0, tuple(value.shape), strides, value.requires_grad, hooks)
        return torch._utils._rebuild_tensor_v2, layout

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[value.tensor.dtype])
        return "storage", kind, str(value.key), str(value.tensor.device), value.tensor.numel()


def _record(name: str, offset: int) -> ZipInfo:
    """A record whose data is aligned, if its header is written at this byte."""
    record = ZipInfo(name)
    before = offset + LOCAL_HEADER + len(name) + SIZES_FIELD + FIELD_HEADER
    padding = -before % ALIGNMENT
    record.extra = struct.pack("<HH", PADDING_FIELD, padding) + bytes(padding)
    return record
