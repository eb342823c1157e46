"""Host side of the Triton kernels: float32 or bfloat16 weights on a CUDA GPU, no autograd.

The same functions as `cpu.py` and `plain.py`, with the same meaning; those that torch does as fast
are torch's. Vectors are float32 beside weights of either type, and every sum is one of float32.
Where W is bfloat16 its rounding is exact, and a product of it needs no copy.

Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from gated_plugin.engine.bound import (
    Bound,
    can_be_bounded,
    float32_bound,
    tensor_core_bound,
    unchecked_bound,
)
from gated_plugin.engine.codes import SparseCodes, sorted_offsets
from gated_plugin.engine.options import options
from gated_plugin.engine.plain import activate, back_to_pre, gather, opened, scatter
from gated_plugin.engine.support import ByFeature, EncoderWeights, StepTerms, Support
from gated_plugin.engine.triton_kernels import gathers, is_interpreted, launch, search

__all__ = [
    "activate",
    "back_to_pre",
    "decode",
    "find_support",
    "gather",
    "sample",
    "scatter",
    "sort_by_feature",
    "step",
    "sum_by_feature",
    "total_by_feature",
]

FUSED = {"enable_fp_fusion": True}
"""Sums of fused multiply-adds, whatever this Triton's default is."""

SEARCH = FUSED | {"ROWS": 128, "FEATURES": 256, "INNER": 64, "GROUP": 32, "num_warps": 8}
"""A 64 × 256 accumulator for each of two warpgroups; 48 KB of bfloat16 operands a stage."""

STAGE_BYTES, MOST_STAGES = 48 << 10, 4

SEARCH_FLOAT32 = SEARCH | {"ROWS": 64, "FEATURES": 64, "INNER": 32}
"""Without tensor cores: what float32 operands and accumulators leave of the registers."""

ROUNDED = FUSED | {"ROWS": 4, "BLOCK_N": 512, "num_warps": 4}
MARKS = FUSED | {"ROWS": 1, "BLOCK_W": 512, "num_warps": 4}

PANEL_BYTES = 2048
"""Of a row at a time: 16 bytes for each of 128 threads."""

GATHERED = FUSED | {"SUMS": 1, "ENTRIES": 8, "num_warps": 4}
"""Loads of eight rows at once."""

SAMPLED = FUSED | {"ENTRIES": 8, "num_warps": 4}
TOTALLED = FUSED | {"SUMS": 1, "ENTRIES": 128, "num_warps": 1}

if is_interpreted():
    # Few programs, since each costs a millisecond; and blocks that small sizes fill more than once.
    SEARCH |= {"ROWS": 16, "FEATURES": 128, "GROUP": 2}
    SEARCH_FLOAT32 |= {"ROWS": 16, "FEATURES": 128, "GROUP": 2}
    ROUNDED |= {"ROWS": 64, "BLOCK_N": 64}
    MARKS |= {"ROWS": 16, "BLOCK_W": 4}
    PANEL_BYTES = 256
    GATHERED |= {"SUMS": 32}
    SAMPLED |= {"ENTRIES": 512}
    TOTALLED |= {"SUMS": 128, "ENTRIES": 8}


class _Operand(NamedTuple):
    """An operand [R, N] of the search, and the norms that its bound needs."""

    searched: Tensor
    norm: Tensor
    residual: Tensor


def find_support(x_BN: Tensor, weights: EncoderWeights, screened: bool) -> Support | None:
    """The open gates of x, each decided by a float32 sum in a fixed order.

    Candidates are picked by a bfloat16 product on the tensor cores if `screened`, else by a
    float32 one; the result does not depend on which, unless options say "unchecked". Of the
    pre-activations one bit each is held.

    Returns:
        None if an operand is not finite or too large for the bound to hold.
    """
    x_BN, W_MN = x_BN.contiguous(), weights.W_enc_NM.T.contiguous()
    x, W = (_operand(operand, screened) for operand in (x_BN, W_MN))
    if not can_be_bounded(x.norm, W.norm, weights.b_gate_M):
        return None
    rows, features = _candidates(x, W, weights.b_gate_M, screened)
    return opened(len(x_BN), rows, features, _sample(rows, features, x_BN, W_MN), weights)


def _operand(exact_RN: Tensor, screened: bool) -> _Operand:
    if not screened or exact_RN.dtype == torch.bfloat16:
        norm = torch.linalg.vector_norm(exact_RN, dim=1, dtype=torch.float32)
        return _Operand(exact_RN, norm, torch.zeros_like(norm))
    R, N = exact_RN.shape
    norm, residual = exact_RN.new_empty(2, R).unbind()
    rounded = torch.empty_like(exact_RN, dtype=torch.bfloat16)
    outputs = (rounded.view(torch.int16), norm, residual)
    launch(search.round_rows, (cdiv(R, ROUNDED["ROWS"]),), exact_RN, *outputs, R, N, **ROUNDED)
    return _Operand(rounded, norm, residual)


def _candidates(
    x: _Operand, W: _Operand, b_gate_M: Tensor, screened: bool
) -> tuple[Tensor, Tensor]:
    """Rows and features [K] of the gates that may be open, row after row."""
    (B, N), M = x.searched.shape, len(W.searched)
    words, some_rows = cdiv(M, search.WORD.value), (cdiv(B, MARKS["ROWS"]),)
    marks = x.norm.new_empty((B, words), dtype=torch.int32)
    tile = SEARCH if x.searched.dtype == torch.bfloat16 else SEARCH_FLOAT32
    launch(
        search.mark_candidates, (cdiv(B, tile["ROWS"]) * cdiv(M, tile["FEATURES"]),),
        x.searched, W.searched, *_bound(N, x, W, screened)[1:], b_gate_M, marks, B, M, N,
        WIDEN=is_interpreted(), num_stages=_stages(x.searched), **tile,
    )  # fmt: skip
    counts = x.norm.new_zeros(B + 1, dtype=torch.int64)
    launch(search.count_marks, some_rows, marks, counts[1:], B, words, **MARKS)
    offsets = counts.cumsum(0)
    features = counts.new_empty(int(offsets[-1]))
    launch(search.list_marks, some_rows, marks, offsets, features, B, words, **MARKS)
    rows = torch.arange(B, device=offsets.device)
    return rows.repeat_interleave(counts[1:], output_size=len(features)), features


def _bound(n: int, x: _Operand, W: _Operand, screened: bool) -> Bound:
    if screened and options().screening == "unchecked":
        return unchecked_bound(x.norm, W.norm)
    if x.searched.dtype == torch.bfloat16:
        return tensor_core_bound(n, x.norm, x.residual, W.norm, W.residual)
    return float32_bound(n, x.norm, W.norm)


def _stages(operand: Tensor) -> int:
    if not operand.is_cuda:
        return 1
    chip = torch.cuda.get_device_properties(operand.device)
    return stages_in(chip.shared_memory_per_block_optin)  # type: ignore[attr-defined] # stub


def stages_in(shared_bytes: int) -> int:
    """How many tiles' loads run ahead of the search's product: as many as shared memory holds."""
    return min(MOST_STAGES, shared_bytes // STAGE_BYTES)


def _panel(vectors: Tensor) -> int:
    """Columns that a program of the gathers deals with."""
    return PANEL_BYTES // vectors.element_size()


def decode(codes: SparseCodes, W_MN: Tensor, b_N: Tensor) -> Tensor:
    """b + Σ value · W[feature]: [B, N], in the type of W."""
    out = W_MN.new_empty(len(codes.offsets) - 1, W_MN.shape[1])
    return _sum_gathered(codes.offsets, codes.features, codes.values, W_MN, b_N, out)


def sum_by_feature(by: ByFeature, values_K: Tensor, left_BN: Tensor, out_MN: Tensor) -> Tensor:
    """out[feature] ← Σ value · left[row], 0 where a feature has no entry; returns `out`."""
    zero_N = left_BN.new_zeros(left_BN.shape[1])
    return _sum_gathered(by.starts, by.rows, values_K[by.order], left_BN, zero_N, out_MN)


def _sum_gathered(
    starts: Tensor,
    sources_K: Tensor,
    values_K: Tensor,
    vectors_RN: Tensor,
    bias_N: Tensor,
    out_SN: Tensor,
) -> Tensor:
    (S, N), block = out_SN.shape, _panel(vectors_RN)
    operands = (starts, sources_K, values_K.contiguous(), vectors_RN.contiguous(), bias_N, out_SN)
    grid = (cdiv(S, GATHERED["SUMS"]), cdiv(N, block))
    launch(gathers.sum_gathered, grid, *operands, S, N, BLOCK_N=block, **GATHERED)
    return out_SN


def total_by_feature(by: ByFeature, values_K: Tensor) -> Tensor:
    """Σ value over the entries of each feature: [M]."""
    M = len(by.starts) - 1
    out = values_K.new_empty(M)
    operands = (by.starts, by.order, values_K.contiguous(), out)
    launch(gathers.total_gathered, (cdiv(M, TOTALLED["SUMS"]),), *operands, M, **TOTALLED)
    return out


def sample(codes: SparseCodes, left_BN: Tensor, W_MN: Tensor) -> Tensor:
    """left[row] · W[feature] on the support: float32 [K]."""
    return _sample(codes.rows, codes.features, left_BN, W_MN)


def _sample(rows_K: Tensor, features_K: Tensor, left_BN: Tensor, W_MN: Tensor) -> Tensor:
    K, N, block = len(features_K), W_MN.shape[1], _panel(W_MN)
    grid = (cdiv(K, SAMPLED["ENTRIES"]), cdiv(N, block))
    out_PK = W_MN.new_empty(grid[1], K, dtype=torch.float32)
    operands = (rows_K, features_K, left_BN.contiguous(), W_MN.contiguous(), out_PK)
    launch(gathers.sample, grid, *operands, K, N, BLOCK_N=block, **SAMPLED)
    return out_PK.sum(0)


def step(support: Support, W_dec_MN: Tensor, b_dec_N: Tensor, x_BN: Tensor) -> StepTerms:
    """Both decodes and both errors in one pass over W_dec, both sampled products in another."""
    codes, (B, N), K = support.codes, x_BN.shape, len(support.gate_K)
    x_hat, error, frozen = x_BN.new_empty(3, B, N, dtype=torch.float32).unbind()
    W_MN, block = W_dec_MN.contiguous(), _panel(W_dec_MN)
    launch(
        gathers.decode_twice, (cdiv(B, GATHERED["SUMS"]), cdiv(N, block)),
        codes.offsets, codes.features, codes.values, support.gate_K, W_MN, b_dec_N,
        x_BN.contiguous(), x_hat, error, frozen, B, N, BLOCK_N=block, **GATHERED,
    )  # fmt: skip
    grid = (cdiv(K, SAMPLED["ENTRIES"]), cdiv(N, block))
    along_2PK = x_BN.new_empty(2, grid[1], K, dtype=torch.float32)
    launch(
        gathers.sample_twice, grid,
        codes.rows, codes.features, error, frozen, W_MN, *along_2PK, K, N,
        BLOCK_N=block, **SAMPLED,
    )  # fmt: skip
    return StepTerms(x_hat, error, frozen, *along_2PK.sum(1))


def sort_by_feature(codes: SparseCodes) -> ByFeature:
    """The order in which weight gradients are summed."""
    features, order = codes.features.sort(stable=True)
    return ByFeature(sorted_offsets(features, codes.shape[-1]), codes.rows[order], order)
