"""Kernels on the rows of the weights: the decoder's norm and Adam.

Shapes: M d_sae, N d_in.
"""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np

from gated_plugin.engine.kernels.compiler import ONE, ZERO, jit


@jit
def remove_parallel_rows(gradient_MN, W_MN, lo, hi):
    """g ← g − (g · w) w, for rows w of norm 1."""
    for j in range(lo, hi):
        g, w, along = gradient_MN[j], W_MN[j], ZERO
        for i in range(w.shape[0]):
            along += g[i] * w[i]
        for i in range(w.shape[0]):
            g[i] -= along * w[i]


@jit
def normalise_rows(W_MN, lo, hi):
    """w ← w / ‖w‖; a row of zeros stays."""
    for j in range(lo, hi):
        w, square = W_MN[j], ZERO
        for i in range(w.shape[0]):
            square += w[i] * w[i]
        if square > 0:
            inverse = ONE / np.sqrt(square)
            for i in range(w.shape[0]):
                w[i] *= inverse


@jit
def decay_row(v, factor, times):
    """v ← factor · v, so many times: the rounding is that of doing it step by step."""
    for _ in range(times):
        for i in range(v.shape[0]):
            v[i] *= factor


@jit
def adam_rows(W_MN, gradient_MN, first_MN, square_MN, last_step_M, step, lr, beta1, beta2,
              inverse_correction, eps, lo, hi):  # fmt: skip
    """Adam on the rows whose gradient or first moment is not 0; the others' v decays when touched.

    m ← β1 m + (1 − β1) g     v ← β2 v + (1 − β2) g²     w ← w − lr m / (√v / √(1 − β2^t) + ε)

    With β1 = 0 `first` may be the gradient itself.
    """
    for j in range(lo, hi):
        g, m, touched = gradient_MN[j], first_MN[j], False
        for i in range(g.shape[0]):
            touched |= (g[i] != 0) | (m[i] != 0)
        if touched:
            w, v = W_MN[j], square_MN[j]
            decay_row(v, beta2, step - last_step_M[j] - 1)
            last_step_M[j] = step
            if beta1 != 0:
                for i in range(g.shape[0]):
                    m[i] = beta1 * m[i] + (ONE - beta1) * g[i]
            for i in range(g.shape[0]):
                v[i] = beta2 * v[i] + (ONE - beta2) * g[i] * g[i]
                w[i] -= lr * m[i] / (np.sqrt(v[i]) * inverse_correction + eps)


@jit
def decay_rows(square_MN, last_step_M, step, beta2, lo, hi):
    """The decay that `adam_rows` still owes every row."""
    for j in range(lo, hi):
        decay_row(square_MN[j], beta2, step - last_step_M[j])
        last_step_M[j] = step
