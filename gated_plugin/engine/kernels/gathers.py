"""Kernels for the products on the support.

Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

# mypy: ignore-errors
from gated_plugin.engine.kernels.compiler import ZERO, jit


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
def decode_row_twice(k, end, features, values, others, W_MN, out_N, other_out_N):
    """`decode_row` with two sets of values in one pass over W.

    With `sample_row_twice` it took 1.07 mm where two passes of each took 1.59, at L0 512.
    """
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
def decode_rows(offsets, features, values, W_MN, out_BN, lo, hi):
    """out ← out + Σ value · W[feature], row by row."""
    for b in range(lo, hi):
        decode_row(offsets[b], offsets[b + 1], features, values, W_MN, out_BN[b])


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
        for i in range(N):
            out[i] = ZERO
        while k + 4 <= end:
            v0, v1 = values[order[k]], values[order[k + 1]]
            v2, v3 = values[order[k + 2]], values[order[k + 3]]
            a0, a1 = left_BN[sorted_rows[k]], left_BN[sorted_rows[k + 1]]
            a2, a3 = left_BN[sorted_rows[k + 2]], left_BN[sorted_rows[k + 3]]
            for i in range(N):
                out[i] += v0 * a0[i] + v1 * a1[i] + v2 * a2[i] + v3 * a3[i]
            k += 4
        while k < end:
            v, a = values[order[k]], left_BN[sorted_rows[k]]
            for i in range(N):
                out[i] += v * a[i]
            k += 1
