"""The dense product that finds candidates: in which precision, and what its error can be."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from gated_plugin.engine.bound import Bound, bfloat16_bound, float32_bound, tf32_bound

WORTH_SCREENING = 0.7
"""Screening also rounds the operands and rechecks more candidates: about 0.1 of a product."""

FEWEST_ROWS = 64
"""Below it a product is bound by reading the weights, which rounding them reads once more."""

PROBE = (256, 512, 2048)
"""Rows, d_in and features of the measurement: 2 to 10 ms a product."""


def screening_pays(rows: int, deterministic: bool) -> bool:
    """Whether bfloat16 products are enough faster than float32 ones on this CPU.

    Measured once per process; with `deterministic` read off the CPU's features instead.
    """
    if rows < FEWEST_ROWS:
        return False
    return has_bfloat16_matrix_unit() if deterministic else _measured_to_pay()


@cache
def has_bfloat16_matrix_unit() -> bool:
    """Whether torch sees AMX tiles."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


@cache
def _measured_to_pay() -> bool:
    rows, n, features = PROBE
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(rows, n, dtype=dtype), torch.ones(features, n, dtype=dtype)
        out = torch.empty(rows, features, dtype=dtype)
        times[dtype] = min(_seconds(x, w, out) for _ in range(4))
    return times[torch.bfloat16] < WORTH_SCREENING * times[torch.float32]


def _seconds(x: Tensor, w: Tensor, out: Tensor) -> float:
    start = time.perf_counter()
    torch.mm(x, w.T, out=out)
    return time.perf_counter() - start


def float32_products_are_rounded() -> bool:
    """Whether the user lets torch round the operands of float32 products on a CPU."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:  # torch before 2.9
        return torch.get_float32_matmul_precision() == "medium"
    return matmul.fp32_precision in ("bf16", "tf32")


def gpu_rounds_float32_products() -> bool:
    """Whether the user lets torch round the operands of float32 products to TF32 on a GPU."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        # Since torch 2.9, where `allow_tf32` raises in some states.
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


def bound_of_product(
    n: int,
    screened: bool,
    norm_B: Tensor,
    residual_B: Tensor,
    norm_F: Tensor,
    residual_F: Tensor,
) -> Bound:
    """What holds for the product that `screened` and torch's own settings lead to."""
    if norm_B.is_cuda and gpu_rounds_float32_products():
        return tf32_bound(n, norm_B, norm_F)
    if screened or float32_products_are_rounded():
        return bfloat16_bound(n, norm_B, residual_B, norm_F, residual_F)
    return float32_bound(n, norm_B, norm_F)
