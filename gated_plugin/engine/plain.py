"""The sparse operations in plain torch: any device and dtype, where no compiled kernel serves.

The same functions as `cpu.py`, with the same meaning. Gathers go in slices of entries, so that
never more than a block of rows of weights is in memory.

Shapes: B rows, N d_in, M d_sae, K entries of the support, F features of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gated_plugin.engine.bound import can_be_bounded
from gated_plugin.engine.codes import SparseCodes, row_offsets, sorted_offsets
from gated_plugin.engine.products import bound_of_product
from gated_plugin.engine.reference import features, magnitude_pre
from gated_plugin.engine.support import ByFeature, DenseTotals, EncoderWeights, StepTerms, Support

TILE_FEATURES = 2048
GATHERED_ELEMENTS = 1 << 22


def find_support(x_BN: Tensor, weights: EncoderWeights, screened: bool) -> Support | None:
    """The open gates of x; None if an operand is not finite or too large for the bound to hold."""
    W_MN = weights.W_enc_NM.T
    found = []
    for first in range(0, len(W_MN), TILE_FEATURES):
        last = first + TILE_FEATURES
        candidates = _candidates(x_BN, W_MN[first:last], weights.b_gate_M[first:last], screened)
        if candidates is None:
            return None
        found.append((candidates[0], candidates[1] + first))
    rows, columns = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = torch.argsort(rows, stable=True)
    rows, columns = rows[order], columns[order]
    return opened(len(x_BN), rows, columns, _products(x_BN, rows, W_MN, columns), weights)


def opened(B: int, rows: Tensor, columns: Tensor, pre: Tensor, weights: EncoderWeights) -> Support:
    """Those candidates whose gate their pre-activation π opens, row after row as they came."""
    gate = pre + weights.b_gate_M[columns]
    is_open = (gate > 0).nonzero()[:, 0]
    rows, columns, pre, gate = (part[is_open] for part in (rows, columns, pre, gate))
    magnitude = weights.r_mag_M.exp()[columns] * pre + weights.b_mag_M[columns]
    codes = SparseCodes(
        offsets=sorted_offsets(rows, B),
        features=columns,
        values=torch.relu(magnitude),
        shape=torch.Size((B, len(weights.b_gate_M))),
    )
    return Support(codes, pre, gate)


def _candidates(
    x_BN: Tensor, W_FN: Tensor, b_gate_F: Tensor, screened: bool
) -> tuple[Tensor, Tensor] | None:
    left, right = (x_BN.bfloat16(), W_FN.bfloat16()) if screened else (x_BN, W_FN)
    norm_B, norm_F = x_BN.norm(dim=1), W_FN.norm(dim=1)
    if not can_be_bounded(norm_B, norm_F, b_gate_F):
        return None
    residuals = (x_BN - x_BN.bfloat16()).norm(dim=1), (W_FN - W_FN.bfloat16()).norm(dim=1)
    bound = bound_of_product(x_BN.shape[1], screened, norm_B, residuals[0], norm_F, residuals[1])
    return bound.candidates((left @ right.T).to(x_BN.dtype), b_gate_F)


def scatter(codes: SparseCodes) -> Tensor:
    """The dense codes [B, M]."""
    dense = codes.values.new_zeros(len(codes.offsets) - 1, codes.shape[-1])
    dense[codes.rows, codes.features] = codes.values
    return dense


def gather(dense_BM: Tensor) -> SparseCodes:
    """The entries of dense codes that are not 0."""
    return SparseCodes.from_dense(dense_BM)


def decode(codes: SparseCodes, W_MN: Tensor, b_N: Tensor) -> Tensor:
    """b + Σ value · W[feature]: [B, N]."""
    return b_N + torch.nn.functional.embedding_bag(
        codes.features,
        W_MN,
        codes.offsets,
        mode="sum",
        per_sample_weights=codes.values,
        include_last_offset=True,
    )


def sample(codes: SparseCodes, left_BN: Tensor, W_MN: Tensor) -> Tensor:
    """left[row] · W[feature] on the support: [K]."""
    return _products(left_BN, codes.rows, W_MN, codes.features)


def step(support: Support, W_dec_MN: Tensor, b_dec_N: Tensor, x_BN: Tensor) -> StepTerms:
    """Both decodes, both errors, and both sampled products."""
    x_hat = decode(support.codes, W_dec_MN, b_dec_N)
    frozen = decode(support.codes.with_values(support.gate_K), W_dec_MN, b_dec_N)
    error, frozen_error = x_hat - x_BN, frozen - x_BN
    along = (sample(support.codes, left, W_dec_MN) for left in (error, frozen_error))
    return StepTerms(x_hat, error, frozen_error, *along)


def sort_by_feature(codes: SparseCodes) -> ByFeature:
    """The order in which weight gradients are summed."""
    order = torch.argsort(codes.features, stable=True)
    starts = row_offsets(codes.features, codes.shape[-1])
    return ByFeature(starts, codes.rows[order], order)


def sum_by_feature(by: ByFeature, values_K: Tensor, left_BN: Tensor, out_MN: Tensor) -> Tensor:
    """out[feature] ← Σ value · left[row], 0 where a feature has no entry; returns `out`."""
    sums = torch.nn.functional.embedding_bag(
        by.rows,
        left_BN,
        by.starts,
        mode="sum",
        per_sample_weights=values_K[by.order],
        include_last_offset=True,
    )
    return out_MN.copy_(sums)


def total_by_feature(by: ByFeature, values_K: Tensor) -> Tensor:
    """Σ value over the entries of each feature: [M]."""
    return torch.segment_reduce(values_K[by.order], "sum", offsets=by.starts, initial=0)


def activate(pre_BM: Tensor, weights: EncoderWeights, out_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Dense features in the memory of `out`, and ReLU(π_gate) in that of `pre`."""
    out_BM.copy_(features(pre_BM, magnitude_pre(pre_BM, weights), weights))
    return out_BM, torch.relu_(pre_BM.add_(weights.b_gate_M))


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
    d_f_BM.mul_(features_BM > 0)
    d_gate_BM.add_(penalty).mul_(gate_BM > 0)
    d_gate_M, d_magnitude_M = d_gate_BM.sum(0), d_f_BM.sum(0)
    d_r_mag_M = (d_f_BM * (features_BM - b_mag_M)).sum(0)
    d_pre_BM = d_gate_BM.addcmul_(d_f_BM, r_mag_M.exp())
    return d_pre_BM, DenseTotals(d_magnitude_M, d_r_mag_M, d_gate_M, d_pre_BM.sum(0))


def _products(left_BN: Tensor, rows: Tensor, W_MN: Tensor, features: Tensor) -> Tensor:
    entries = max(1, GATHERED_ELEMENTS // left_BN.shape[1])
    parts = [
        (left_BN[row] * W_MN[feature]).sum(1)
        for row, feature in zip(rows.split(entries), features.split(entries), strict=True)
    ]
    return torch.cat(parts)
