"""The certified bound, hunted for violations, and the support that follows from it.

The truth is the float64 product: with up to 64 terms of 48 bits it errs by less than 2⁻⁴⁶ of the
norms, beside a bound of 2⁻²⁰ of them and more.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from adversaries import Pair, Sizes, adversaries
from torch import Tensor

from gated_plugin.engine import cpu, plain
from gated_plugin.engine.bound import Bound, bfloat16_bound, float32_bound
from gated_plugin.engine.support import EncoderWeights

SIZES: list[Sizes] = [(1, 1, 1), (3, 7, 5), (1, 257, 1), (64, 257, 4), (2, 1025, 33)]
MANY: Sizes = (3072, 48, 3200)
"""With every adversary in turn 2.2e8 pre-activations."""

SOME: Sizes = (48, 64, 515)

OF_ALL = pytest.mark.parametrize("make", adversaries.values(), ids=adversaries.keys())


def worst_share(bound: Bound, tile_BM: Tensor, x_BN: Tensor, w_MN: Tensor) -> float:
    """The largest |x·w − tile| as a share of its bound; NaN if one of them is."""
    worst = []
    for rows in torch.arange(len(x_BN)).split(256):
        tile = tile_BM[rows].double()
        margin = tile.abs().mul_(bound.slope).add_(bound.floor_B[rows, None].double())
        margin.addmm_(bound.by_norm_B[rows, None].double(), bound.norm_M[None].double())
        margin.addmm_(bound.by_residual_B[rows, None].double(), bound.residual_M[None].double())
        error = tile.addmm_(x_BN[rows].double(), w_MN.T.double(), beta=-1).abs_()
        worst.append(error.div_(margin).max())
    return torch.stack(worst).max().item()


def rounded(operands: Pair) -> tuple[cpu._Rounded, cpu._Rounded]:
    x, w = operands
    return cpu._Rounded(x), cpu._Rounded(w)


@OF_ALL
def test_a_bfloat16_product_is_within_its_bound(make):
    for sizes in (*SIZES, MANY):
        x, w = rounded(make(sizes))
        tile = torch.empty(len(x.exact), len(w.exact), dtype=torch.bfloat16)
        torch.mm(x.bfloat16, w.bfloat16.T, out=tile)
        bound = bfloat16_bound(sizes[1], x.norm, x.residual, w.norm, w.residual)
        assert worst_share(bound, tile, x.exact, w.exact) <= 1, sizes


@OF_ALL
def test_a_float32_product_is_within_its_bound(make):
    for sizes in (*SIZES, SOME):
        x, w = rounded(make(sizes))
        bound = float32_bound(sizes[1], x.norm, w.norm)
        assert worst_share(bound, x.exact @ w.exact.T, x.exact, w.exact) <= 1, sizes


@OF_ALL
def test_a_float32_product_that_flushes_denormals_is_within_its_bound(make, flushed_denormals):
    test_a_float32_product_is_within_its_bound(make)


@OF_ALL
def test_a_float32_product_of_rounded_operands_is_within_its_bound(make, rounded_float32_products):
    for sizes in (*SIZES, SOME):
        x, w = rounded(make(sizes))
        bound = bfloat16_bound(sizes[1], x.norm, x.residual, w.norm, w.residual)
        assert worst_share(bound, x.exact @ w.exact.T, x.exact, w.exact) <= 1, sizes


@OF_ALL
def test_operands_are_rounded_as_torch_rounds_and_their_norms_are_true(make):
    for operand in (*make((3, 7, 5)), *make((2, 1025, 33)), *make(SOME)):
        found, exact, near = cpu._Rounded(operand), operand.double(), operand.bfloat16()
        assert torch.equal(found.bfloat16, near)
        underflow = 2 * operand.shape[1] ** 0.5 * 2.0**-74
        norm, residual = exact.norm(dim=1), (exact - near.double()).norm(dim=1)
        assert ((found.norm - norm).abs() <= 1e-5 * norm + underflow).all()
        assert ((found.residual - residual).abs() <= 1e-5 * residual + underflow).all()


def band(x_BN: Tensor, w_MN: Tensor) -> Tensor:
    """How far from its threshold a gate is certain, by contract: γ ‖x‖ ‖w‖, and underflow."""
    n = x_BN.shape[1]
    unit = n * 2.0**-24 / (1 - n * 2.0**-24)
    norms = x_BN.double().norm(dim=1)[:, None] * w_MN.double().norm(dim=1)
    return unit * norms + 2 * n * 2.0**-126


def close_to_the_threshold(x_BN: Tensor, w_MN: Tensor) -> Tensor:
    """b_gate [M]: minus the pre-activation of some row, but for some ulps or just over the band."""
    M = torch.arange(len(w_MN))
    row_M = M % len(x_BN)
    pre_M = (x_BN[row_M].double() * w_MN.double()).sum(1)
    ulps_M = torch.randint(-3, 4, (len(w_MN),)) * pre_M.abs() * 2.0**-23
    certain_M = torch.randn(len(w_MN)).sign() * 1.01 * band(x_BN, w_MN)[row_M, M]
    return torch.where(M % 3 == 0, ulps_M, certain_M).sub_(pre_M).float()


def found_gates(x_BN: Tensor, w_MN: Tensor, b_gate_M: Tensor, operations, screened) -> Tensor:
    zero = torch.zeros_like(b_gate_M)
    support = operations.find_support(x_BN, EncoderWeights(w_MN.T, b_gate_M, zero, zero), screened)
    found = torch.zeros(len(x_BN), len(w_MN), dtype=torch.bool)
    found[support.codes.rows, support.codes.features] = True
    return found


def assert_certain_gates_are_found(
    make, operations, screened: bool, sizes: Sequence[Sizes] = (*SIZES, SOME)
) -> None:
    for size in sizes:
        x, w = make(size)
        b_gate = close_to_the_threshold(x, w)
        gate = x.double() @ w.T.double() + b_gate.double()
        wrong = found_gates(x, w, b_gate, operations, screened) != (gate > 0)
        assert (wrong & (gate.abs() > band(x, w))).sum() == 0, size


WAYS = pytest.mark.parametrize(
    ("operations", "screened"),
    [(cpu, True), (cpu, False), (plain, True), (plain, False)],
    ids=["kernels, screened", "kernels", "torch, screened", "torch"],
)


@OF_ALL
@WAYS
class TestGatesAtTheirThreshold:
    def test_every_certain_gate_is_found(self, make, operations, screened):
        assert_certain_gates_are_found(make, operations, screened)

    def test_also_where_float32_products_are_rounded(
        self, make, operations, screened, rounded_float32_products
    ):
        assert_certain_gates_are_found(make, operations, screened)

    def test_also_where_denormals_are_flushed(self, make, operations, screened, flushed_denormals):
        assert_certain_gates_are_found(make, operations, screened)


@WAYS
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 3.4e38, 1e18])
@pytest.mark.parametrize("poisoned", ["x", "W_enc"])
def test_nothing_is_found_among_what_cannot_be_bounded(operations, screened, poison, poisoned):
    x, w = adversaries["gaussian"]((33, 48, 2050))
    (x if poisoned == "x" else w)[-1, 7] = poison
    zero = torch.zeros(2050)
    weights = EncoderWeights(w.T, zero, zero, zero)
    assert operations.find_support(x, weights, screened) is None
