"""Big arrays that every training step needs anew, in memory that is used again.

Fresh memory costs a page fault per 4 kB: 14 ms for the gradient of one 24576 × 768 matrix where
filling it costs 2. A trainer drops its gradients after every step; here their memory is kept, and
handed out again once nothing else refers to it.
"""

from __future__ import annotations

import sys
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

ONLY_HERE = 3
"""References to an array that only this module holds: the list's, the loop's, getrefcount's own."""


class KeptMemory:
    """Arrays kept for a weight, for as long as it lives; on a CPU, in float32."""

    def __init__(self) -> None:
        self._kept: Any = WeakTensorKeyDictionary()
        self._lock = Lock()

    def take(self, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised memory of this shape, which nothing else refers to."""
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return torch.empty(shape, dtype=weight.dtype, device=weight.device)
        with self._lock:
            arrays = self._kept.setdefault(weight, [])
            is_free = [sys.getrefcount(array) <= ONLY_HERE for array in arrays]
            for array, free in zip(arrays, is_free, strict=True):
                if free and array.shape == shape:
                    return torch.from_numpy(array)
            # What is free has another shape: the last batch was of another size.
            arrays[:] = [array for array, free in zip(arrays, is_free, strict=True) if not free]
            arrays.append(torch.empty(shape).numpy())
            return torch.from_numpy(arrays[-1])

    def kept(self, weight: Tensor) -> list[Tensor]:
        """All arrays that are held for this weight, whether free or not."""
        with self._lock:
            return [torch.from_numpy(array) for array in self._kept.get(weight, [])]

    def release(self, weight: Tensor) -> None:
        """Keep nothing for this weight any longer."""
        self._kept.pop(weight, None)


GRADIENTS = KeptMemory()
"""At most twice the size of a weight: an optimizer may hold one gradient as its first moment while
the next is written."""

ACTIVATIONS = KeptMemory()
"""What the dense step needs between forward and backward; released when a sparse step serves."""
