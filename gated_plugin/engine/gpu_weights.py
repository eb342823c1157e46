"""Adam and the decoder's norm on whole rows of weights, by Triton kernels on a CUDA GPU.

The same functions as `cpu_weights.py`, for float32 or bfloat16 weights [M, N].
"""

from __future__ import annotations

from math import sqrt

import torch
import triton
from torch import Tensor

from gated_plugin.engine.triton_kernels import is_interpreted, launch, weight_rows

ROWS = 64 if is_interpreted() else 1
"""Rows a program; each program of the interpreter costs a millisecond."""


def adam_step(
    W_MN: Tensor,
    gradient_MN: Tensor,
    first_MN: Tensor,
    square_MN: Tensor,
    last_step_M: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Adam on the rows whose gradient or first moment is not 0; see `cpu_weights.adam_step`."""
    beta1, beta2 = betas
    corrected = (lr / (1 - beta1**step), beta1, beta2, 1 / sqrt(1 - beta2**step), eps)
    grid, sizes, blocks = _whole_rows(W_MN)
    operands = (W_MN.detach(), gradient_MN, first_MN, square_MN, last_step_M)
    scalars = (step, *corrected, *sizes)
    launch(weight_rows.adam_rows, grid, *operands, *scalars, HAS_FIRST=beta1 != 0, **blocks)


def pay_decay(square_MN: Tensor, last_step_M: Tensor, step: int, beta2: float) -> None:
    """Bring every row's second moment up to `step`."""
    grid, sizes, blocks = _whole_rows(square_MN)
    launch(weight_rows.decay_rows, grid, square_MN, last_step_M, step, beta2, *sizes, **blocks)


def normalise_rows(W_MN: Tensor) -> None:
    """Scale every row to norm 1, in place; a row of zeros has no direction and stays."""
    grid, sizes, blocks = _whole_rows(W_MN)
    launch(weight_rows.normalise_rows, grid, W_MN.detach(), *sizes, **blocks)


def remove_parallel(gradient_MN: Tensor, W_MN: Tensor) -> None:
    """g ← g − (g · w) w in place, for rows w of norm 1."""
    grid, sizes, blocks = _whole_rows(W_MN)
    launch(weight_rows.remove_parallel_rows, grid, gradient_MN, W_MN.detach(), *sizes, **blocks)


def _whole_rows(W_MN: Tensor) -> tuple[tuple[int], torch.Size, dict[str, int]]:
    """The grid, M and N, and blocks."""
    return (triton.cdiv(len(W_MN), ROWS),), W_MN.shape, blocks_of(W_MN.shape[1])


def blocks_of(N: int) -> dict[str, int]:
    """Whole rows: 16 numbers a thread, as far as there are threads."""
    block = triton.next_power_of_2(N)
    warps = min(16, max(1, block // 512))
    return {"ROWS": ROWS, "BLOCK_N": block, "num_warps": warps, "enable_fp_fusion": True}
