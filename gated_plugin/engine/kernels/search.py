"""Kernels that find the open gates, and bring them into row order.

Shapes: B rows, N d_in, M d_sae, K entries of the support, F features of a tile.
"""

from __future__ import annotations

# mypy: ignore-errors
import numpy as np
from numba import types
from numba.extending import overload

from gated_plugin.engine import bound
from gated_plugin.engine.kernels.compiler import ZERO, jit

FLAGS_PER_WORD = 8
COMPARISON = np.float32(bound.COMPARISON)


def widen(value):
    """A tile's value as float32: tiles of bfloat16 come as int16. For numba only, see `_widen`."""
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
               slope, near, lo, hi, rows, features, pre):  # fmt: skip
    """Write the open gates of one tile of approximate pre-activations; returns how many.

    A gate is a candidate where |π − tile| ≤ bound leaves it undecided or open; then π is computed
    in float32 and decides. More than fit are counted, not written. `near` features, a multiple of
    8, are dealt with for all rows before the next: their weights stay in the cache.
    """
    F, N, n = tile_BF.shape[1], x_BN.shape[1], 0
    flags = np.zeros(near, np.int8)
    any_of_eight = flags.view(np.int64)
    for first in range(0, F, near):
        here = min(near, F - first)
        W, norm, residual = W_FN[first:], norm_F[first:], residual_F[first:]
        b_gate = b_gate_F[first:]
        flags[here:] = 0
        for b in range(lo, hi):
            tile, x = tile_BF[b, first:], x_BN[b]
            by_norm, by_residual, floor = by_norm_B[b], by_residual_B[b], floor_B[b]
            for j in range(here):
                value = widen(tile[j])
                margin = slope * abs(value) + by_norm * norm[j] + by_residual * residual[j] + floor
                flags[j] = value + margin > -b_gate[j] - COMPARISON * abs(b_gate[j])
            for word in range(any_of_eight.shape[0]):
                if any_of_eight[word] != 0:
                    for j in range(word * FLAGS_PER_WORD, (word + 1) * FLAGS_PER_WORD):
                        if flags[j]:
                            w, product = W[j], ZERO
                            for i in range(N):
                                product += x[i] * w[i]
                            if product + b_gate[j] > 0:
                                if n < rows.shape[0]:
                                    rows[n], features[n], pre[n] = b, first + j, product
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
        magnitude[at] = ZERO if value <= 0 else value


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
