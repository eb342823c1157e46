"""What the machine can do, in the same run: one dense product in each precision, and a copy.

All of the case's shape, into memory that is already there. Shapes: B rows, N d_in, M d_sae.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from benchmarks.clock import Chain, Timed, product
from benchmarks.workload import Case, Workload
from gated_plugin.engine.products import has_bfloat16_matrix_unit

ROW = "units"
"""Under this name among the timed rows."""

COPY = "copy"


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round the operands of float32 products to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def unit_chains(workload: Workload) -> list[Chain]:
    """The products that this device has, each timed apart, and a copy of one weight matrix."""
    device = workload.case.device
    calls = {"mm_fp32": _product(workload, torch.float32, rounded=False)}
    if device != "cpu":
        calls["mm_tf32"] = _product(workload, torch.float32, rounded=True)
    if device != "cpu" or has_bfloat16_matrix_unit():
        calls["mm_bf16"] = _product(workload, torch.bfloat16, rounded=False)
    there_MN = torch.empty_like(workload.W_dec_MN)
    calls[COPY] = lambda _: there_MN.copy_(workload.W_dec_MN)
    return [[(name, call)] for name, call in calls.items()]


def unit_facts(case: Case, timed: Mapping[str, Timed]) -> dict[str, dict[str, Any]]:
    """Milliseconds, and TFLOP/s of a product or GB/s of the copy (bytes read and written)."""
    products = 2 * case.rows * case.d_in * case.d_sae
    copied = 2 * 4 * case.d_in * case.d_sae
    facts = {}
    for name, cell in timed.items():
        ms = median(cell.milliseconds)
        rate = ("gb_per_s", copied / ms / 1e6) if name == COPY else ("tflops", products / ms / 1e9)
        facts[name] = {"ms": ms, rate[0]: rate[1], "milliseconds": cell.milliseconds}
    return facts


def _product(workload: Workload, dtype: torch.dtype, *, rounded: bool) -> Callable[[Any], Any]:
    multiply_in = product(workload, dtype)

    def multiply(_: Any) -> None:
        with tf32(rounded):
            multiply_in(_)

    return multiply
