"""Kernels for the products on the support: sums of gathered rows, and products with them.

Every sum runs in one fixed order, in float32 whatever the operands' type; no atomics, so results
do not change from run to run. Rows and features that are gathered are int64: d_sae × d_in may
exceed 2³¹. Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def sum_gathered(
    starts, sources_K, values_K, vectors_RN, bias_N, out_SN, S, N,
    SUMS: tl.constexpr, ENTRIES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[s] ← bias + Σ value · vectors[source] over the entries starts[s] to starts[s + 1].

    The decode, with s a row and the decoder's rows as vectors; a weight's gradient, with s a
    feature and the batch's rows as vectors.
    """
    s, n, begin, end, there = _sums(starts, S, N, SUMS, BLOCK_N)
    total = tl.load(bias_N + n, mask=n < N, other=0).to(tl.float32)[None, :]
    total = tl.broadcast_to(total, [SUMS, BLOCK_N])
    for first in range(0, tl.max(end - begin, 0), ENTRIES):
        k, within = _entries(begin, end, first, ENTRIES)
        source = tl.load(sources_K + k, mask=within, other=0)
        value = tl.load(values_K + k, mask=within, other=0).to(tl.float32)
        where = within[:, :, None] & (n < N)[None, None, :]
        at = source[:, :, None] * N + n[None, None, :]
        vector = tl.load(vectors_RN + at, mask=where, other=0).to(tl.float32)
        total += tl.sum(value[:, :, None] * vector, 1)
    at = s[:, None] * N + n[None, :]
    tl.store(out_SN + at, total.to(out_SN.dtype.element_ty), mask=there)


@triton.jit
def total_gathered(
    starts, sources_K, values_K, out_S, S, SUMS: tl.constexpr, ENTRIES: tl.constexpr
):
    """out[s] ← Σ values[source] over the entries starts[s] to starts[s + 1]."""
    s, _, begin, end, _ = _sums(starts, S, 1, SUMS, 1)
    total = tl.zeros([SUMS, ENTRIES], tl.float32)
    for first in range(0, tl.max(end - begin, 0), ENTRIES):
        k, within = _entries(begin, end, first, ENTRIES)
        source = tl.load(sources_K + k, mask=within, other=0)
        total += tl.load(values_K + source, mask=within, other=0)
    tl.store(out_S + s, tl.sum(total, 1), mask=s < S)


@triton.jit
def decode_twice(
    offsets, features_K, values_K, others_K, W_MN, b_dec_N, x_BN, x_hat_BN, error_BN, frozen_BN,
    B, N, SUMS: tl.constexpr, ENTRIES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Both decodes and both errors, with one read of the decoder's rows.

    x̂ ← b + Σ value w      error ← x̂ − x      frozen ← b + Σ other w − x
    """
    b, n, begin, end, there = _sums(offsets, B, N, SUMS, BLOCK_N)
    bias = tl.load(b_dec_N + n, mask=n < N, other=0).to(tl.float32)[None, :]
    x_hat = tl.broadcast_to(bias, [SUMS, BLOCK_N])
    frozen = x_hat
    for first in range(0, tl.max(end - begin, 0), ENTRIES):
        k, within = _entries(begin, end, first, ENTRIES)
        feature = tl.load(features_K + k, mask=within, other=0)
        value = tl.load(values_K + k, mask=within, other=0)
        other = tl.load(others_K + k, mask=within, other=0)
        where = within[:, :, None] & (n < N)[None, None, :]
        at = feature[:, :, None] * N + n[None, None, :]
        w = tl.load(W_MN + at, mask=where, other=0).to(tl.float32)
        x_hat += tl.sum(value[:, :, None] * w, 1)
        frozen += tl.sum(other[:, :, None] * w, 1)
    at = b[:, None] * N + n[None, :]
    x = tl.load(x_BN + at, mask=there, other=0).to(tl.float32)
    tl.store(x_hat_BN + at, x_hat, mask=there)
    tl.store(error_BN + at, x_hat - x, mask=there)
    tl.store(frozen_BN + at, frozen - x, mask=there)


@triton.jit
def _sums(starts, S, N, SUMS: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's sums and columns, the entries of each sum, and which results there are."""
    s = tl.program_id(0).to(tl.int64) * SUMS + tl.arange(0, SUMS)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(starts + s, mask=s < S, other=0)
    end = tl.load(starts + s + 1, mask=s < S, other=0)
    return s, n, begin, end, (s < S)[:, None] & (n < N)[None, :]


@triton.jit
def _entries(begin, end, first, ENTRIES: tl.constexpr):
    """The entries from `first` on of each sum, and which there are: [SUMS, ENTRIES]."""
    k = begin[:, None] + first + tl.arange(0, ENTRIES)[None, :]
    return k, k < end[:, None]


@triton.jit(do_not_specialize=["K"])
def sample(
    rows_K, features_K, left_BN, W_MN, out_PK, K, N, ENTRIES: tl.constexpr, BLOCK_N: tl.constexpr
):
    """out ← left[row] · W[feature], a panel of columns a program; the panels are added afterwards.

    Programs go through one panel before the next: what is used often of it stays in L2.
    """
    k, at_left, at_W, there = _panel(rows_K, features_K, K, N, ENTRIES, BLOCK_N)
    left = tl.load(left_BN + at_left, mask=there, other=0).to(tl.float32)
    w = tl.load(W_MN + at_W, mask=there, other=0).to(tl.float32)
    into = tl.program_id(1).to(tl.int64) * K + k
    tl.store(out_PK + into, tl.sum(left * w, 1), mask=k < K)


@triton.jit(do_not_specialize=["K"])
def sample_twice(
    rows_K, features_K, left_BN, other_BN, W_MN, out_PK, other_out_PK, K, N,
    ENTRIES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`sample` with two left sides, and one read of W's rows."""
    k, at_left, at_W, there = _panel(rows_K, features_K, K, N, ENTRIES, BLOCK_N)
    w = tl.load(W_MN + at_W, mask=there, other=0).to(tl.float32)
    left = tl.load(left_BN + at_left, mask=there, other=0)
    other = tl.load(other_BN + at_left, mask=there, other=0)
    into = tl.program_id(1).to(tl.int64) * K + k
    tl.store(out_PK + into, tl.sum(left * w, 1), mask=k < K)
    tl.store(other_out_PK + into, tl.sum(other * w, 1), mask=k < K)


@triton.jit
def _panel(rows_K, features_K, K, N, ENTRIES: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's entries, where its columns of both operands are, and which there are."""
    k = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(rows_K + k, mask=k < K, other=0)
    feature = tl.load(features_K + k, mask=k < K, other=0)
    at_left, at_W = row[:, None] * N + n[None, :], feature[:, None] * N + n[None, :]
    return k, at_left, at_W, (k < K)[:, None] & (n < N)[None, :]
