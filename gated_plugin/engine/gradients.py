"""Memory for the gradients of big weights, used again step after step.

Fresh memory costs a page fault per 4 kB: 14 ms for the gradient of one 24576 × 768 matrix where
filling it costs 2. A trainer drops its gradients after every step; here their memory is kept, and
handed out again once nothing else refers to it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_kept: Any = WeakTensorKeyDictionary()

ONLY_HERE = 3
"""References to an array that only this module holds: the list's, the loop's, getrefcount's own."""


def gradient_memory(weight: Tensor, rows_MN: Tensor) -> Tensor:
    """Uninitialised, contiguous, of the shape of `rows_MN`: the gradient of `weight`'s rows.

    Memory on a CPU is kept for as long as `weight` lives, at most twice its size: an optimizer may
    hold one gradient as its first moment while the next is written.
    """
    if rows_MN.device.type != "cpu" or rows_MN.dtype != torch.float32:
        return torch.empty_like(rows_MN, memory_format=torch.contiguous_format)
    arrays = _kept.setdefault(weight, [])
    for array in arrays:
        if array.shape == rows_MN.shape and sys.getrefcount(array) <= ONLY_HERE:
            return torch.from_numpy(array)
    arrays[:-1] = []
    arrays.append(torch.empty(rows_MN.shape).numpy())
    return torch.from_numpy(arrays[-1])
