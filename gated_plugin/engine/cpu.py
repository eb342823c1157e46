"""Host side of the compiled CPU kernels: float32, no autograd.

Shapes: B rows, N d_in, M d_sae, K entries of the support, F features of a tile.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gated_plugin.engine.bound import can_be_bounded
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.kernels import activations, gathers, search
from gated_plugin.engine.products import bound_of_product
from gated_plugin.engine.support import ByFeature, DenseTotals, EncoderWeights, StepTerms, Support
from gated_plugin.engine.threads import even_ranges, in_threads

BLOCK_ROWS = 4096
TILE_FEATURES = 2048
"""Pre-activations of one tile of these sizes are all that is held: 16 MB of bfloat16. Encoding at
(2048, 768, 24576) took 0.65, 0.46, 0.38, 0.34, 0.35 mm with 256, 512, 1024, 2048, 4096 features."""

NEAR_FEATURES, MANY = 512, 0.02
"""Where more than 2 % of the gates are open, weights are read from the cache 512 features at a
time: 0.96 mm instead of 1.09 at L0 512 of 12288, but 0.33 instead of 0.31 at L0 64 of 24576."""


class _Rounded:
    """An operand [R, N] of the product, its bfloat16 copy, and the norms that its bound needs."""

    def __init__(self, operand_RN: Tensor) -> None:
        self.exact = operand_RN
        self.bfloat16 = torch.empty_like(operand_RN, dtype=torch.bfloat16)
        self.norm, self.residual = operand_RN.new_empty(2, len(operand_RN)).unbind()
        arrays = (
            _numpy(operand_RN),
            _numpy(self.bfloat16.view(torch.int16)),
            _numpy(self.norm),
            _numpy(self.residual),
        )
        in_threads(lambda lo, hi: search.round_rows(*arrays, lo, hi), even_ranges(len(operand_RN)))


class _RowBlock:
    """Some rows of the batch, and the open gates found for them tile after tile.

    All blocks use the same memory for a tile's products, bfloat16 if they screen.
    """

    def __init__(self, x_BN: Tensor, first_row: int, memory: Tensor) -> None:
        self.x = _Rounded(x_BN)
        self.first_row = first_row
        self.memory = memory
        self.near = TILE_FEATURES
        self.ranges = even_ranges(len(x_BN))
        self.found: list[list[tuple[Any, Any, Any]]] = [[] for _ in self.ranges]

    def search(self, tile: _Rounded, first: int, b_gate_F: Tensor) -> bool:
        """Find the open gates of the features from `first` on; False if nothing can be certain."""
        x, F = self.x, len(tile.exact)
        screened = self.memory.dtype == torch.bfloat16
        if not can_be_bounded(x.norm, tile.norm, b_gate_F):
            return False
        bound = bound_of_product(
            x.exact.shape[1], screened, x.norm, x.residual, tile.norm, tile.residual
        )
        left, right = (x.bfloat16, tile.bfloat16) if screened else (x.exact, tile.exact)
        products = self.memory[: len(left) * F].view(-1, F)
        torch.mm(left, right.T, out=products)
        products = products.view(torch.int16) if screened else products
        arrays = (products, x.exact, tile.exact, *bound[1:], b_gate_F)
        inputs = [_numpy(array) for array in arrays]

        def work(lo: int, hi: int) -> tuple[Any, Any, Any]:
            room = max(1024, (hi - lo) * F // 16)
            while True:
                found = (
                    np.empty(room, np.int32),
                    np.empty(room, np.int32),
                    np.empty(room, np.float32),
                )
                n = search.open_gates(*inputs, np.float32(bound.slope), self.near, lo, hi, *found)
                if n <= room:
                    rows, features, pre = (array[:n].copy() for array in found)
                    return rows, features + np.int32(first), pre
                room = n

        for found, entries in zip(self.found, in_threads(work, self.ranges), strict=True):
            found.append(entries)
        if sum(len(found[-1][0]) for found in self.found) > MANY * products.numel():
            self.near = NEAR_FEATURES
        return True


def find_support(x_BN: Tensor, weights: EncoderWeights, screened: bool) -> Support | None:
    """The open gates of x, each decided by a float32 product in a fixed order.

    Candidates are picked by a bfloat16 product if `screened`, else by a float32 one; the result
    does not depend on which. Never more than a tile of pre-activations is in memory.

    Returns:
        None if an operand is not finite or too large for the bound to hold.
    """
    x_BN, W_MN = x_BN.contiguous(), weights.W_enc_NM.T.contiguous()
    dtype = torch.bfloat16 if screened else torch.float32
    memory = torch.empty(min(len(x_BN), BLOCK_ROWS) * TILE_FEATURES, dtype=dtype)
    starts = range(0, len(x_BN), BLOCK_ROWS)
    blocks = [_RowBlock(x_BN[at : at + BLOCK_ROWS], at, memory) for at in starts]
    for first in range(0, len(W_MN), TILE_FEATURES):
        last = first + TILE_FEATURES
        tile, b_gate_F = _Rounded(W_MN[first:last]), weights.b_gate_M[first:last]
        if not all(block.search(tile, first, b_gate_F) for block in blocks):
            return None
    return _in_row_order(blocks, weights, len(x_BN))


def _in_row_order(blocks: list[_RowBlock], weights: EncoderWeights, B: int) -> Support:
    parts, counts = [], np.zeros(B + 1, np.int64)
    for block in blocks:
        for (lo, hi), found in zip(block.ranges, block.found, strict=True):
            rows, features, pre = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            first = block.first_row + lo
            counts[first + 1 : first + hi - lo + 1] = np.bincount(rows - lo, minlength=hi - lo)
            parts.append((rows + np.int32(block.first_row), features, pre))
    offsets = np.cumsum(counts)
    K, following = offsets[-1], offsets[:-1].copy()
    features = np.empty(K, np.int64)
    pre, gate, magnitude = np.empty((3, K), np.float32)
    vectors = (weights.b_gate_M, weights.b_mag_M, weights.r_mag_M.exp())
    outputs = (*(_numpy(v) for v in vectors), features, pre, gate, magnitude)

    def work(lo: int, hi: int) -> None:
        for part in parts[lo:hi]:
            search.place_by_row(*part, following, *outputs)

    in_threads(work, even_ranges(len(parts)))
    codes = SparseCodes(
        offsets=torch.from_numpy(offsets),
        features=torch.from_numpy(features),
        values=torch.from_numpy(magnitude),
        shape=torch.Size((B, len(weights.b_gate_M))),
    )
    return Support(codes, torch.from_numpy(pre), torch.from_numpy(gate))


def scatter(codes: SparseCodes) -> Tensor:
    """The dense codes [B, M]."""
    # NumPy asks for huge pages: 23 ms where torch.zeros takes 45 at 2048 × 24576.
    dense = np.zeros((len(codes.offsets) - 1, codes.shape[-1]), np.float32)
    arrays = (*_arrays(codes), _numpy(codes.values), dense)
    in_threads(lambda lo, hi: search.scatter_rows(*arrays, lo, hi), even_ranges(len(dense)))
    return torch.from_numpy(dense)


def gather(dense_BM: Tensor) -> SparseCodes:
    """The entries of dense codes that are not 0."""
    dense, ranges = _numpy(dense_BM), even_ranges(len(dense_BM))
    counts = np.zeros(len(dense) + 1, np.int64)

    def work(lo: int, hi: int) -> tuple[Any, Any]:
        room = max(1024, (hi - lo) * dense.shape[1] // 64)
        while True:
            features, values = np.empty(room, np.int64), np.empty(room, np.float32)
            n = search.entries_of_rows(dense, lo, hi, counts[1:], features, values)
            if n <= room:
                return features[:n], values[:n]
            room = n

    parts = zip(*in_threads(work, ranges), strict=True)
    features, values = (torch.from_numpy(np.concatenate(part)) for part in parts)
    offsets = torch.from_numpy(np.cumsum(counts))
    return SparseCodes(offsets=offsets, features=features, values=values, shape=dense_BM.shape)


def decode(codes: SparseCodes, W_MN: Tensor, b_N: Tensor) -> Tensor:
    """b + Σ value · W[feature]: [B, N]."""
    out = b_N.detach().repeat(len(codes.offsets) - 1, 1)
    arrays = (*_arrays(codes), _numpy(codes.values), _numpy(W_MN), _numpy(out))
    in_threads(lambda lo, hi: gathers.decode_rows(*arrays, lo, hi), even_ranges(len(out)))
    return out


def sample(codes: SparseCodes, left_BN: Tensor, W_MN: Tensor) -> Tensor:
    """left[row] · W[feature] on the support: [K]."""
    out = torch.empty(len(codes.features))
    arrays = (*_arrays(codes), _numpy(left_BN), _numpy(W_MN), _numpy(out))
    in_threads(lambda lo, hi: gathers.sample_rows(*arrays, lo, hi), even_ranges(len(left_BN)))
    return out


def step(support: Support, W_dec_MN: Tensor, b_dec_N: Tensor, x_BN: Tensor) -> StepTerms:
    """Both decodes, both errors, and both sampled products in one pass over W_dec."""
    K = len(support.gate_K)
    outputs = (*x_BN.new_empty(3, *x_BN.shape).unbind(), *x_BN.new_empty(2, K).unbind())
    inputs = (support.codes.values, support.gate_K, W_dec_MN, b_dec_N, x_BN)
    arrays = (*_arrays(support.codes), *(_numpy(array) for array in (*inputs, *outputs)))
    in_threads(lambda lo, hi: gathers.step_rows(*arrays, lo, hi), even_ranges(len(x_BN)))
    return StepTerms(*outputs)


def sort_by_feature(codes: SparseCodes) -> ByFeature:
    """The order in which weight gradients are summed."""
    features, rows = _numpy(codes.features), _numpy(codes.rows)
    starts = np.zeros(codes.shape[-1] + 1, np.int64)
    np.cumsum(np.bincount(features, minlength=codes.shape[-1]), out=starts[1:])
    sorted_rows, order = np.empty((2, len(rows)), np.int64)
    gathers.sort_by_feature(rows, features, starts[:-1].copy(), sorted_rows, order)
    return ByFeature(*(torch.from_numpy(array) for array in (starts, sorted_rows, order)))


def sum_by_feature(by: ByFeature, values_K: Tensor, left_BN: Tensor, out_MN: Tensor) -> Tensor:
    """out[feature] ← Σ value · left[row], 0 where a feature has no entry; returns `out`."""
    assert out_MN.is_contiguous()  # else the kernel would write to a copy
    arrays = [_numpy(array) for array in (*by, values_K, left_BN, out_MN)]
    in_threads(lambda lo, hi: gathers.sum_by_feature(*arrays, lo, hi), _balanced(by.starts))
    return out_MN


def total_by_feature(by: ByFeature, values_K: Tensor) -> Tensor:
    """Σ value over the entries of each feature: [M]."""
    out = values_K.new_empty(len(by.starts) - 1)
    arrays = [_numpy(array) for array in (by.starts, by.order, values_K, out)]
    in_threads(lambda lo, hi: gathers.total_by_feature(*arrays, lo, hi), _balanced(by.starts))
    return out


def activate(pre_BM: Tensor, weights: EncoderWeights, out_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Dense features in the memory of `out`, and ReLU(π_gate) in that of `pre`."""
    vectors = (weights.b_gate_M, weights.b_mag_M, weights.r_mag_M.exp())
    arrays = [_numpy(array) for array in (pre_BM, *vectors, out_BM)]
    in_threads(lambda lo, hi: activations.activate_rows(*arrays, lo, hi), even_ranges(len(pre_BM)))
    return out_BM, pre_BM


def back_to_pre(
    features_BM: Tensor,
    gate_BM: Tensor,
    d_f_BM: Tensor,
    d_gate_BM: Tensor,
    penalty: float,
    b_mag_M: Tensor,
    r_mag_M: Tensor,
) -> tuple[Tensor, DenseTotals]:
    """∂π, in the memory of `d_gate`, and what sums over the rows give.

    Args:
        penalty: what the sparsity loss adds to ∂π_gate of every open gate.
    """
    inputs = (features_BM, gate_BM, d_f_BM, d_gate_BM, r_mag_M.exp())
    totals = np.zeros((3, len(b_mag_M)))
    arrays = (*(_numpy(array) for array in inputs), np.float32(penalty), *totals)
    in_threads(
        lambda lo, hi: activations.back_to_pre_columns(*arrays, lo, hi), even_ranges(len(b_mag_M))
    )
    d_magnitude_M, d_weighted_M, d_gate_M = torch.from_numpy(totals)
    # Where f > 0, exp(r_mag) π = f − b_mag.
    d_r_mag_M = d_weighted_M - b_mag_M * d_magnitude_M
    d_pre_M = r_mag_M.exp() * d_magnitude_M + d_gate_M
    sums = (d_magnitude_M, d_r_mag_M, d_gate_M, d_pre_M)
    return d_gate_BM, DenseTotals(*(total.float() for total in sums))


def _balanced(starts: Tensor) -> list[tuple[int, int]]:
    """Ranges of features with about as many entries each; a feature alone costs one too."""
    work = _numpy(starts) + np.arange(len(starts))
    goals = [hi for _, hi in even_ranges(int(work[-1]))]
    cuts = [0, *np.searchsorted(work, goals).tolist()]
    return [(lo, hi) for lo, hi in pairwise(cuts) if lo < hi]


def _arrays(codes: SparseCodes) -> tuple[Any, Any]:
    return _numpy(codes.offsets), _numpy(codes.features)


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
