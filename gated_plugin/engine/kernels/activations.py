"""Kernels for what surrounds the dense products, each one pass over memory.

Shapes: B rows, M d_sae.
"""

from __future__ import annotations

# mypy: ignore-errors
from gated_plugin.engine.kernels.compiler import ZERO, jit


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
