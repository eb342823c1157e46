"""Kernels on whole rows of the weights, held in registers: the decoder's norm and Adam.

What needs no change is not written, and a row without a gradient costs one read: the loads and
stores of the others are masked. Shapes: M d_sae, N d_in.
"""

from __future__ import annotations

# mypy: ignore-errors
import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**-22)
"""A squared norm that is nearer to 1 is that of a row of norm 1, within the rounding of the sum."""


@triton.jit
def remove_parallel_rows(gradient_MN, W_MN, M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """g ← g − (g · w) w, for rows w of norm 1."""
    _, at, there = _places(M, N, ROWS, BLOCK_N)
    g = tl.load(gradient_MN + at, mask=there, other=0).to(tl.float32)
    there = there & (tl.max((g != 0).to(tl.int32), 1) > 0)[:, None]
    w = tl.load(W_MN + at, mask=there, other=0).to(tl.float32)
    g -= tl.sum(g * w, 1)[:, None] * w
    tl.store(gradient_MN + at, g.to(gradient_MN.dtype.element_ty), mask=there)


@triton.jit
def normalise_rows(W_MN, M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """w ← w / ‖w‖; a row of zeros stays."""
    _, at, there = _places(M, N, ROWS, BLOCK_N)
    w = tl.load(W_MN + at, mask=there, other=0).to(tl.float32)
    square = tl.sum(w * w, 1)
    is_off = (square > 0) & (tl.abs(square - 1) > UNIT)
    unit = tl.div_rn(w, tl.sqrt_rn(tl.where(is_off, square, 1.0))[:, None])
    unit = unit.to(W_MN.dtype.element_ty)
    changes = is_off & (tl.max((unit.to(tl.float32) != w).to(tl.int32), 1) > 0)
    tl.store(W_MN + at, unit, mask=there & changes[:, None])


@triton.jit(do_not_specialize=["step"])
def adam_rows(
    W_MN, gradient_MN, first_MN, square_MN, last_step_M,
    step, lr, beta1, beta2, inverse_correction, eps, M, N,
    HAS_FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adam on the rows whose gradient or first moment is not 0; the others' v decays when touched.

    m ← β1 m + (1 − β1) g     v ← β2 v + (1 − β2) g²     w ← w − lr m / (√v / √(1 − β2^t) + ε)
    """
    row, at, there = _places(M, N, ROWS, BLOCK_N)
    g = tl.load(gradient_MN + at, mask=there, other=0).to(tl.float32)
    m, touched = g, tl.max((g != 0).to(tl.int32), 1) > 0
    if HAS_FIRST:
        m = tl.load(first_MN + at, mask=there, other=0).to(tl.float32)
        touched = touched | (tl.max((m != 0).to(tl.int32), 1) > 0)
        m = beta1 * m + (1 - beta1) * g
    there = there & touched[:, None]
    last = tl.load(last_step_M + row, mask=touched & (row < M), other=step)
    v = tl.load(square_MN + at, mask=there, other=0)
    v = beta2 * _decayed(v, beta2, step - 1 - last) + (1 - beta2) * g * g
    w = tl.load(W_MN + at, mask=there, other=0).to(tl.float32)
    w -= tl.div_rn(lr * m, tl.sqrt_rn(v) * inverse_correction + eps)
    tl.store(W_MN + at, w.to(W_MN.dtype.element_ty), mask=there)
    tl.store(square_MN + at, v.to(square_MN.dtype.element_ty), mask=there)
    if HAS_FIRST:
        tl.store(first_MN + at, m.to(first_MN.dtype.element_ty), mask=there)
    tl.store(last_step_M + row, tl.full([ROWS], step, tl.int64), mask=touched & (row < M))


@triton.jit(do_not_specialize=["step"])
def decay_rows(
    square_MN, last_step_M, step, beta2, M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The decay that `adam_rows` still owes every row."""
    row, at, there = _places(M, N, ROWS, BLOCK_N)
    last = tl.load(last_step_M + row, mask=row < M, other=step)
    there = there & (last < step)[:, None]
    v = _decayed(tl.load(square_MN + at, mask=there, other=0), beta2, step - last)
    tl.store(square_MN + at, v.to(square_MN.dtype.element_ty), mask=there)
    tl.store(last_step_M + row, tl.full([ROWS], step, tl.int64), mask=row < M)


@triton.jit
def _places(M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's rows, where their numbers are, and which of them there are."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, BLOCK_N)
    return row, row[:, None] * N + n[None, :], (row < M)[:, None] & (n < N)[None, :]


@triton.jit
def _decayed(v, factor, times):
    """v ← factor · v, so many times in each row, rounded each time to the type it is kept in."""
    kept = v.dtype
    wide = v.to(tl.float32)
    for done in range(tl.max(times, 0)):
        next_wide = (wide * factor).to(kept).to(tl.float32)
        wide = tl.where((done < times)[:, None], next_wide, wide)
    return wide
