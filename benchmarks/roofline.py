"""The least time that each part of our sparse step can take on a device, and what binds it.

A floor is the larger of two: bytes that must be moved once, at the bandwidth of a copy, and
operations, at the rate of a product: the search at that of the fastest product that may be used
(bfloat16), what is computed on the support at that of float32. All rates are measured in the same
run. Gathers from caches and latencies are not in it, so no code reaches it.

Shapes: B rows, N d_in, M d_sae, K = B · L0 entries, T features that fire at least once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.units import COPY
from benchmarks.workload import Case

FLOAT, INDEX = 4, 8
"""Bytes."""


class Work(NamedTuple):
    """What a part cannot do without."""

    bytes_moved: float
    search_flops: float
    support_flops: float


class Floor(NamedTuple):
    """The least milliseconds of a part, and what sets them."""

    milliseconds: float
    by_bytes: float
    by_flops: float
    binds: str


def works(case: Case, touched: int) -> dict[str, Work]:
    """By the columns of the timings; `touched` is T."""
    B, N, M = case.rows, case.d_in, case.d_sae
    K = B * case.l0
    batch, weights, rows = FLOAT * B * N, FLOAT * M * N, FLOAT * touched * N
    codes = (FLOAT + INDEX) * K
    search = 2.0 * B * N * M
    return {
        # W_enc once, the rows of W_dec that fire; x in, x̂ and both errors out. On the support: π
        # anew, two decodes, two sampled products.
        "forward": Work(weights + rows + 4 * batch + codes, search, 5 * 2 * K * N),
        # Both gradients out, x and the error in; two sums over the support.
        "backward": Work(2 * weights + 2 * batch + codes, 0, 2 * 2 * K * N),
        # Clipping reads both gradients and scales the rows that are not 0; Adam reads w, g, v and
        # writes w, v of those; the decoder's norm reads and writes W_dec.
        "optimizer": Work(2 * weights + 2 * 2 * rows + 2 * 5 * rows + 2 * weights, 0, 0),
        "encode": Work(weights + batch + codes, search, 2 * K * N),
        "decode": Work(rows + batch + codes, 0, 2 * K * N),
    }


def floors(case: Case, units: dict[str, dict[str, Any]], touched: int) -> dict[str, Floor]:
    """Of every part, and of `step` and `encode+decode`, which are sums of parts."""
    bandwidth = units[COPY]["gb_per_s"] * 1e6
    float32 = units["mm_fp32"]["tflops"] * 1e9
    fastest = max(units[name]["tflops"] for name in ("mm_fp32", "mm_bf16") if name in units) * 1e9
    found = {}
    for part, work in works(case, touched).items():
        by_bytes = work.bytes_moved / bandwidth
        by_flops = work.search_flops / fastest + work.support_flops / float32
        binds = "bytes" if by_bytes > by_flops else "FLOPs"
        found[part] = Floor(max(by_bytes, by_flops), by_bytes, by_flops, binds)
    sums = {
        "step": ("forward", "backward", "optimizer"),
        "encode+decode": ("encode", "decode"),
    }
    for whole, parts in sums.items():
        largest = max(parts, key=lambda part: found[part].milliseconds)
        found[whole] = Floor(
            sum(found[part].milliseconds for part in parts),
            sum(found[part].by_bytes for part in parts),
            sum(found[part].by_flops for part in parts),
            f"{found[largest].binds} of {largest}",
        )
    return found


def useful_flops(case: Case) -> float:
    """Of a step that finds the support by one dense product and then stays on it."""
    return sum(
        work.search_flops + work.support_flops
        for part, work in works(case, 0).items()
        if part in ("forward", "backward")
    )
