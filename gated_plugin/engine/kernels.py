"""Compiled CPU kernels; each works on a range [lo, hi) of rows or features, without the GIL.

Every sum runs in one fixed order inside one thread, so results do not depend on the number of
threads. NaN is kept (no `nnan` in the maths flags). Host functions are in `cpu.py`.

Shapes: B rows, N d_in, M d_sae, K entries of the support, F features of a tile.
"""

from __future__ import annotations

# mypy: ignore-errors
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from gated_plugin.engine import bound

jit: Any = njit(
    nogil=True,
    cache=True,
    boundscheck=False,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz", "arcp"},
)

ZERO, ONE = np.float32(0), np.float32(1)
FLAGS_PER_WORD = 8
COMPARISON = np.float32(bound.COMPARISON)


def widen(value):
    """A tile's value as float32: tiles of bfloat16 come as int16."""
    raise NotImplementedError


@overload(widen)
def _widen(value):
    if isinstance(value, types.Integer):
        return lambda value: np.int32(np.int32(value) << 16).view(np.float32)
    return lambda value: value


@jit
def round_rows(W_MN, bits_MN, norm_M, residual_M, lo, hi):
    """bits ← bfloat16(W); norm ← ‖w‖, residual ← ‖w − bfloat16(w)‖, row by row."""
    for j in range(lo, hi):
        w, raw, bits = W_MN[j], W_MN[j].view(np.int32), bits_MN[j]
        square, lost = ZERO, ZERO
        for i in range(w.shape[0]):
            to_nearest_even = np.int32(0x7FFF) + ((raw[i] >> np.int32(16)) & np.int32(1))
            high = np.int32(np.int32(raw[i] + to_nearest_even) >> np.int32(16))
            bits[i] = np.int16(high)
            gap = w[i] - np.int32(high << np.int32(16)).view(np.float32)
            square += w[i] * w[i]
            lost += gap * gap
        norm_M[j] = np.sqrt(square)
        residual_M[j] = np.sqrt(lost)


@jit
def open_gates(tile_BF, x_BN, W_FN, by_norm_B, by_residual_B, floor_B, norm_F, residual_F, b_gate_F,
               slope, lo, hi, rows, features, pre):  # fmt: skip
    """Write the open gates of one tile of approximate pre-activations; returns how many.

    A gate is a candidate where |π − tile| ≤ bound leaves it undecided or open; then π is computed
    in float32 and decides. More than fit are counted, not written.
    """
    F, N, n = tile_BF.shape[1], x_BN.shape[1], 0
    words = (F + FLAGS_PER_WORD - 1) // FLAGS_PER_WORD
    flags = np.zeros(words * FLAGS_PER_WORD, np.int8)
    any_of_eight = flags.view(np.int64)
    for b in range(lo, hi):
        tile, x = tile_BF[b], x_BN[b]
        by_norm, by_residual, floor = by_norm_B[b], by_residual_B[b], floor_B[b]
        for j in range(F):
            value = widen(tile[j])
            margin = slope * abs(value) + by_norm * norm_F[j] + by_residual * residual_F[j] + floor
            flags[j] = value + margin > -b_gate_F[j] - COMPARISON * abs(b_gate_F[j])
        for word in range(words):
            if any_of_eight[word] != 0:
                for j in range(word * FLAGS_PER_WORD, min(F, (word + 1) * FLAGS_PER_WORD)):
                    if flags[j]:
                        w, product = W_FN[j], ZERO
                        for i in range(N):
                            product += x[i] * w[i]
                        if product + b_gate_F[j] > 0:
                            if n < rows.shape[0]:
                                rows[n], features[n], pre[n] = b, j, product
                            n += 1
    return n


@jit
def place_by_row(rows, features_found, pre_found, next_B, b_gate_M, b_mag_M, scale_M,
                 features, pre, gate, magnitude):  # fmt: skip
    """Bring entries found tile after tile into row order, and finish both paths.

    `next_B` holds where each row's next entry goes, and moves on with it.
    """
    for k in range(rows.shape[0]):
        j, b, p = features_found[k], rows[k], pre_found[k]
        at = next_B[b]
        next_B[b] = at + 1
        features[at], pre[at], gate[at] = j, p, p + b_gate_M[j]
        value = scale_M[j] * p + b_mag_M[j]
        magnitude[at] = value if value > 0 else ZERO


@jit
def entries_of_rows(dense_BM, lo, hi, counts_B, features, values):
    """Write the entries of dense rows that are not 0 (NaN is one); returns how many.

    More than fit are counted, not written.
    """
    M, n = dense_BM.shape[1], 0
    words = (M + FLAGS_PER_WORD - 1) // FLAGS_PER_WORD
    flags = np.zeros(words * FLAGS_PER_WORD, np.int8)
    any_of_eight = flags.view(np.int64)
    for b in range(lo, hi):
        row, before = dense_BM[b], n
        for j in range(M):
            flags[j] = row[j] != 0
        for word in range(words):
            if any_of_eight[word] != 0:
                for j in range(word * FLAGS_PER_WORD, min(M, (word + 1) * FLAGS_PER_WORD)):
                    if flags[j]:
                        if n < features.shape[0]:
                            features[n], values[n] = j, row[j]
                        n += 1
        counts_B[b] = n - before
    return n


@jit
def scatter_rows(offsets, features, values, dense_BM, lo, hi):
    """dense[b, features] ← values; the rest of `dense` is left alone."""
    for b in range(lo, hi):
        row = dense_BM[b]
        for k in range(offsets[b], offsets[b + 1]):
            row[features[k]] = values[k]


@jit
def decode_row(k, end, features, values, W_MN, out_N):
    """out ← out + Σ value · W[feature] over the entries k to end."""
    N = out_N.shape[0]
    while k + 4 <= end:
        w0, w1 = W_MN[features[k]], W_MN[features[k + 1]]
        w2, w3 = W_MN[features[k + 2]], W_MN[features[k + 3]]
        v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        for i in range(N):
            out_N[i] += v0 * w0[i] + v1 * w1[i] + v2 * w2[i] + v3 * w3[i]
        k += 4
    while k < end:
        w, v = W_MN[features[k]], values[k]
        for i in range(N):
            out_N[i] += v * w[i]
        k += 1


@jit
def decode_rows(offsets, features, values, W_MN, out_BN, lo, hi):
    """out ← out + Σ value · W[feature], row by row."""
    for b in range(lo, hi):
        decode_row(offsets[b], offsets[b + 1], features, values, W_MN, out_BN[b])


@jit
def decode_row_twice(k, end, features, values, others, W_MN, out_N, other_out_N):
    """`decode_row` with two sets of values in one pass over W."""
    N = out_N.shape[0]
    while k + 4 <= end:
        w0, w1 = W_MN[features[k]], W_MN[features[k + 1]]
        w2, w3 = W_MN[features[k + 2]], W_MN[features[k + 3]]
        v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        u0, u1, u2, u3 = others[k], others[k + 1], others[k + 2], others[k + 3]
        for i in range(N):
            out_N[i] += v0 * w0[i] + v1 * w1[i] + v2 * w2[i] + v3 * w3[i]
            other_out_N[i] += u0 * w0[i] + u1 * w1[i] + u2 * w2[i] + u3 * w3[i]
        k += 4
    while k < end:
        w, v, u = W_MN[features[k]], values[k], others[k]
        for i in range(N):
            out_N[i] += v * w[i]
            other_out_N[i] += u * w[i]
        k += 1


@jit
def sample_row_twice(k, end, features, left_N, other_N, W_MN, out_K, other_out_K):
    """out ← left · W[feature] and other_out ← other · W[feature] for the entries k to end."""
    N = left_N.shape[0]
    while k + 2 <= end:
        w0, w1, s0, s1, t0, t1 = W_MN[features[k]], W_MN[features[k + 1]], ZERO, ZERO, ZERO, ZERO
        for i in range(N):
            s0 += left_N[i] * w0[i]
            s1 += left_N[i] * w1[i]
            t0 += other_N[i] * w0[i]
            t1 += other_N[i] * w1[i]
        out_K[k], out_K[k + 1], other_out_K[k], other_out_K[k + 1] = s0, s1, t0, t1
        k += 2
    if k < end:
        w, s0, t0 = W_MN[features[k]], ZERO, ZERO
        for i in range(N):
            s0 += left_N[i] * w[i]
            t0 += other_N[i] * w[i]
        out_K[k], other_out_K[k] = s0, t0


@jit
def sample_rows(offsets, features, left_BN, W_MN, out_K, lo, hi):
    """out ← left[row] · W[feature], on the support."""
    for b in range(lo, hi):
        left = left_BN[b]
        for k in range(offsets[b], offsets[b + 1]):
            w, total = W_MN[features[k]], ZERO
            for i in range(left.shape[0]):
                total += left[i] * w[i]
            out_K[k] = total


@jit
def step_rows(offsets, features, magnitude, gate, W_MN, b_dec_N, x_BN, x_hat_BN, error_BN, frozen_BN,
              along_error_K, along_frozen_K, lo, hi):  # fmt: skip
    """Both decodes, both errors and both sampled products, while a row's part of W is in cache.

    x̂ ← b + Σ f W      error ← x̂ − x      frozen ← b + Σ ReLU(π) W − x
    along_error ← error · W[feature]       along_frozen ← frozen · W[feature]
    """
    N = x_BN.shape[1]
    for b in range(lo, hi):
        k, end = offsets[b], offsets[b + 1]
        x, x_hat, error, frozen = x_BN[b], x_hat_BN[b], error_BN[b], frozen_BN[b]
        for i in range(N):
            x_hat[i] = b_dec_N[i]
            frozen[i] = b_dec_N[i]
        decode_row_twice(k, end, features, magnitude, gate, W_MN, x_hat, frozen)
        for i in range(N):
            error[i] = x_hat[i] - x[i]
            frozen[i] -= x[i]
        sample_row_twice(k, end, features, error, frozen, W_MN, along_error_K, along_frozen_K)


@jit
def sort_by_feature(rows, features, ends_M, sorted_rows, order):
    """A stable counting sort; ends[j] is moved from the start to the end of feature j's entries."""
    for k in range(features.shape[0]):
        j = features[k]
        at = ends_M[j]
        sorted_rows[at], order[at] = rows[k], k
        ends_M[j] = at + 1


@jit
def total_by_feature(starts, order, values, out_M, lo, hi):
    """out[j] ← Σ value over the entries of feature j."""
    for j in range(lo, hi):
        total = 0.0
        for k in range(starts[j], starts[j + 1]):
            total += values[order[k]]
        out_M[j] = total


@jit
def sum_by_feature(starts, sorted_rows, order, values, left_BN, out_MN, lo, hi):
    """out[j] ← Σ value · left[row] over the entries of feature j; 0 where it has none."""
    N = out_MN.shape[1]
    for j in range(lo, hi):
        out, k, end = out_MN[j], starts[j], starts[j + 1]
        if k + 2 <= end:
            v0, v1 = values[order[k]], values[order[k + 1]]
            a0, a1 = left_BN[sorted_rows[k]], left_BN[sorted_rows[k + 1]]
            for i in range(N):
                out[i] = v0 * a0[i] + v1 * a1[i]
            k += 2
        else:
            for i in range(N):
                out[i] = ZERO
        while k + 2 <= end:
            v0, v1 = values[order[k]], values[order[k + 1]]
            a0, a1 = left_BN[sorted_rows[k]], left_BN[sorted_rows[k + 1]]
            for i in range(N):
                out[i] += v0 * a0[i] + v1 * a1[i]
            k += 2
        if k < end:
            v, a = values[order[k]], left_BN[sorted_rows[k]]
            for i in range(N):
                out[i] += v * a[i]


@jit
def activate_rows(pre_BM, b_gate_M, b_mag_M, scale_M, features_BM, lo, hi):
    """features ← f; pre ← ReLU(π + b_gate). NaN passes through both."""
    for b in range(lo, hi):
        pre, features = pre_BM[b], features_BM[b]
        for j in range(pre.shape[0]):
            p = pre[j]
            value, gate = scale_M[j] * p + b_mag_M[j], p + b_gate_M[j]
            features[j] = ZERO if value <= 0 or gate <= 0 else value
            pre[j] = ZERO if gate <= 0 else gate


@jit
def back_to_pre_columns(features_BM, gate_BM, d_f_BM, d_gate_BM, b_mag_M, scale_M,
                        d_magnitude_M, d_r_mag_M, d_gate_M, d_pre_M, lo, hi):  # fmt: skip
    """d_gate ← ∂π from ∂f and ∂π_gate, and the sums of all four over the rows (in float64)."""
    for b in range(features_BM.shape[0]):
        features, gate, d_f, d_pre = features_BM[b], gate_BM[b], d_f_BM[b], d_gate_BM[b]
        for j in range(lo, hi):
            f = features[j]
            m = d_f[j] if f > 0 else ZERO
            g = d_pre[j] if gate[j] > 0 else ZERO
            p = scale_M[j] * m + g
            d_pre[j] = p
            d_magnitude_M[j] += m
            d_r_mag_M[j] += m * (f - b_mag_M[j])
            d_gate_M[j] += g
            d_pre_M[j] += p
