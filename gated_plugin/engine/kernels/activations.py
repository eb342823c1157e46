"""Kernels for what surrounds the dense products, each one pass over memory.

Shapes: B rows, M d_sae.
"""

from __future__ import annotations

# mypy: ignore-errors
from gated_plugin.engine.kernels.compiler import ZERO, jit

NEAR = 1024  # features whose pieces of all arrays lie in the first cache


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
def back_to_pre_columns(features_BM, gate_BM, d_f_BM, d_gate_BM, scale_M, penalty,
                        d_magnitude_M, d_r_mag_M, d_gate_M, lo, hi):  # fmt: skip
    """d_f ← ∂magnitude, d_gate ← ∂π; adds to the sums over the rows of ∂magnitude, of ∂magnitude f,
    and of ∂π_gate, which are float64.
    """
    for b in range(features_BM.shape[0]):
        for first in range(lo, hi, NEAR):
            last = min(hi, first + NEAR)
            back_to_pre(
                features_BM[b, first:last], gate_BM[b, first:last], d_f_BM[b, first:last],
                d_gate_BM[b, first:last], scale_M[first:last], penalty,
                d_magnitude_M[first:last], d_r_mag_M[first:last], d_gate_M[first:last],
            )  # fmt: skip


@jit
def back_to_pre(features, gate, d_f, d_gate, scale, penalty, sum_magnitude, sum_r_mag, sum_gate):
    """One piece of one row. A loop each, of three arrays at most: compilers vectorise no more."""
    n = features.shape[0]
    for j in range(n):
        d_f[j] = d_f[j] if features[j] > 0 else ZERO
    for j in range(n):
        d_gate[j] = d_gate[j] + penalty if gate[j] > 0 else ZERO
    for j in range(n):
        sum_magnitude[j] += d_f[j]
    for j in range(n):
        sum_r_mag[j] += d_f[j] * features[j]
    for j in range(n):
        sum_gate[j] += d_gate[j]
    for j in range(n):
        d_gate[j] += scale[j] * d_f[j]
