"""What SAELens' gated SAE would hold at a size that is not run.

Autograd says which tensors it keeps from the forward to the backward pass: how many there are of each
shape is counted at a toy size. Its peak is measured where d_in is small, as a number of arrays
[rows, d_sae].
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.implementations import build
from benchmarks.memory import working_megabytes
from benchmarks.workload import Case, make

MEASURED: dict[str, Any] = {"rows": 512, "d_in": 64, "d_sae": 16384}
"""33 MB an array [rows, d_sae], and 4 a weight."""

NAMES = {"rows": 24, "d_in": 16, "d_sae": 96}
"""Sizes of the toy, all different, so that a shape has but one reading."""


def peak_arrays_of_saelens(case: Case, threads: int) -> float | None:
    """The peak of its step, in arrays [rows, d_sae]; call it before torch has computed anything."""
    small = replace(case, **MEASURED, l0=8, device="cpu")
    megabytes = working_megabytes("saelens", small, threads)
    return megabytes and round(megabytes * 1e6 / (4 * small.rows * small.d_sae), 1)


def kept_by_saelens(case: Case) -> list[dict[str, Any]]:
    """Tensors by shape, and their bytes at the case's size; of vectors nothing."""
    toy = replace(case, **NAMES, l0=4, device="cpu")
    training = build("saelens", make(toy)).training
    assert training is not None
    held = {weight.untyped_storage().data_ptr() for weight in training.model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in held and tensor.dim() == 2:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training.loss()
    counts = Counter((tuple(t.shape), t.element_size()) for t in saved.values())
    del loss
    return [_facts(case, *kind, number) for kind, number in counts.items()]


def _facts(case: Case, sizes: tuple[int, ...], item_bytes: int, tensors: int) -> dict[str, Any]:
    names = [name for size in sizes for name, toy in NAMES.items() if toy == size]
    elements = 1
    for name in names:
        elements *= getattr(case, name)
    return {
        "shape": f"[{', '.join(names)}]",
        "element_bytes": item_bytes,
        "tensors": tensors,
        "bytes": tensors * elements * item_bytes,
    }
