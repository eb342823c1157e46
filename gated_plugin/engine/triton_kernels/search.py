"""Kernels that find the gates which may be open, and list them row after row.

Shapes: B rows, N d_in, M d_sae; 32 features share a word of marks.
"""

from __future__ import annotations

# mypy: ignore-errors
import triton
import triton.language as tl

from gated_plugin.engine import bound

WORD = tl.constexpr(32)
COMPARISON = tl.constexpr(bound.COMPARISON)


@triton.jit
def round_rows(W_MN, bits_MN, norm_M, residual_M, M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    """bits ← bfloat16(W), as int16; norm ← ‖w‖, residual ← ‖w − bfloat16(w)‖."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    square = tl.zeros([ROWS, BLOCK_N], tl.float32)
    lost = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        at, there = row[:, None] * N + n[None, :], (row < M)[:, None] & (n < N)[None, :]
        w = tl.load(W_MN + at, mask=there, other=0)
        # To nearest even by hand: denormals are kept, and Triton's interpreter would cut.
        raw = w.to(tl.int32, bitcast=True)
        high = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
        tl.store(bits_MN + at, high.to(tl.int16), mask=there)
        gap = w - (high << 16).to(tl.float32, bitcast=True)
        square += w * w
        lost += gap * gap
    tl.store(norm_M + row, tl.sqrt(tl.sum(square, 1)), mask=row < M)
    tl.store(residual_M + row, tl.sqrt(tl.sum(lost, 1)), mask=row < M)


@triton.jit
def mark_candidates(
    x_BN, W_MN, by_norm_B, by_residual_B, floor_B, norm_M, residual_M, b_gate_M, marks_BW,
    B, M, N,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of products x·w, and a bit for each gate that the bound leaves open or undecided.

    The pre-activations never leave the chip: of each, one bit is written. Programs go down GROUP
    blocks of rows before the next block of features, so that W is read once and x stays in L2.
    `WIDEN` is for Triton's interpreter, which takes the bits of bfloat16 operands for integers.
    """
    program, blocks = tl.program_id(0), tl.cdiv(B, ROWS)
    group = program // (GROUP * tl.cdiv(M, FEATURES)) * GROUP
    members = min(blocks - group, GROUP)
    within = program % (GROUP * tl.cdiv(M, FEATURES))
    first_row = (group + within % members) * ROWS
    first_feature = within // members * FEATURES
    b = first_row + tl.arange(0, ROWS)
    j = first_feature + tl.arange(0, FEATURES)
    there_B, there_M = b < B, j < M
    # Beyond the last row and feature the products are those of others, and their bits are 0.
    row, feature = (b % B).to(tl.int64), (j % M).to(tl.int64)
    product = tl.zeros([ROWS, FEATURES], tl.float32)
    for first in range(0, N, INNER):
        n = first + tl.arange(0, INNER)
        x = tl.load(x_BN + row[:, None] * N + n[None, :], mask=n[None, :] < N, other=0)
        w = tl.load(W_MN + feature[None, :] * N + n[:, None], mask=n[:, None] < N, other=0)
        if WIDEN:
            x, w = x.to(tl.float32), w.to(tl.float32)
        product = tl.dot(x, w, product, input_precision="ieee")
    norm, residual = tl.load(norm_M + feature), tl.load(residual_M + feature)
    by_norm, by_residual = tl.load(by_norm_B + row), tl.load(by_residual_B + row)
    b_gate = tl.load(b_gate_M + feature)
    # As fused multiply-adds onto the product's own layout: no tile goes through shared memory.
    most = product + tl.load(floor_B + row)[:, None]
    most = tl.fma(_tile(by_norm[:, None], most), _tile(norm[None, :], most), most)
    most = tl.fma(_tile(by_residual[:, None], most), _tile(residual[None, :], most), most)
    surely_closed_below = -b_gate - COMPARISON * tl.abs(b_gate)
    may_open = most > surely_closed_below[None, :]
    may_open = may_open & there_B[:, None] & there_M[None, :]
    bits = tl.reshape(may_open, [ROWS, FEATURES // WORD, WORD]).to(tl.int32)
    marks = tl.sum(bits << tl.arange(0, WORD)[None, None, :], 2)
    words = tl.cdiv(M, WORD)
    word = first_feature // WORD + tl.arange(0, FEATURES // WORD)
    into = marks_BW + b.to(tl.int64)[:, None] * words + word[None, :]
    tl.store(into, marks, mask=there_B[:, None] & (word < words)[None, :])


@triton.jit
def _tile(vector, tile):
    return tl.broadcast_to(vector, tile.shape)


@triton.jit
def _ones(word):
    """How many bits of each int32 are set (Warren, Hacker's Delight, section 5-1)."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((eights * 0x01010101) >> 24) & 0x3F


@triton.jit
def count_marks(marks_BW, counts_B, B, words, ROWS: tl.constexpr, BLOCK_W: tl.constexpr):
    """counts ← marks of each row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK_W], tl.int32)
    for first in range(0, words, BLOCK_W):
        total += _ones(_marks(marks_BW, row, B, first, words, BLOCK_W))
    tl.store(counts_B + row, tl.sum(total, 1).to(tl.int64), mask=row < B)


@triton.jit
def list_marks(
    marks_BW, offsets_B, features_K, B, words, ROWS: tl.constexpr, BLOCK_W: tl.constexpr
):
    """features ← where the marks of each row are, ascending."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(offsets_B + row, mask=row < B, other=0)
    for first in range(0, words, BLOCK_W):
        word = first + tl.arange(0, BLOCK_W)
        marks = _marks(marks_BW, row, B, first, words, BLOCK_W)
        count = _ones(marks)
        at = begin[:, None] + tl.cumsum(count, 1) - count
        begin += tl.sum(count, 1)
        for _ in range(tl.max(tl.max(count, 1), 0)):
            # The lowest bit that is set: its place is the number of ones below it.
            feature = word[None, :] * WORD + _ones((marks & -marks) - 1)
            tl.store(features_K + at, feature.to(tl.int64), mask=marks != 0)
            at += (marks != 0).to(at.dtype)
            marks = marks & (marks - 1)


@triton.jit
def _marks(marks_BW, row, B, first, words, BLOCK_W: tl.constexpr):
    """Words `first` and on of some rows; 0 beyond the last."""
    word = first + tl.arange(0, BLOCK_W)
    there = (row < B)[:, None] & (word < words)[None, :]
    return tl.load(marks_BW + row[:, None] * words + word[None, :], mask=there, other=0)
