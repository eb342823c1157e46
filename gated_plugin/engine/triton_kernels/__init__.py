"""Triton kernels for CUDA GPUs, a file per room; `engine/gpu.py` and `engine/gpu_weights.py` call them.

Nothing here imports triton until a room is entered.
"""

from __future__ import annotations

import os
from typing import Any

import torch


def is_interpreted() -> bool:
    """Whether Triton was told to run its kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launch(kernel: Any, grid: tuple[int, ...], *operands: Any, **blocks: Any) -> None:
    """Start a kernel on the GPU that its first operand is on, unless there is nothing to do."""
    if all(grid):
        with torch.cuda.device_of(operands[0]):
            kernel[grid](*operands, **blocks)
