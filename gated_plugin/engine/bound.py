"""How far a low-precision product can be from the gate's true pre-activation: certified.

Let x, w be float32 vectors of length n, x̃, w̃ what the product is computed from, u = 2⁻²⁴ and
γ = n·u / (1 − n·u). The true product differs from the one that is found by at most

    |x·w − x̃·w̃|        ≤ ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖     Cauchy–Schwarz on (x − x̃)·w + x̃·(w − w̃)
    |x̃·w̃ − fl(x̃·w̃)|    ≤ γ ‖x̃‖ ‖w̃‖                      float32 accumulation, in any order
    |fl − bf16(fl)|      ≤ 2⁻⁸ |fl| ≤ 2⁻⁸ (1 + 2⁻⁷) |tile| rounding of the result to bfloat16
    underflow            ≤ n·2⁻¹²⁶ (1 + ‖x‖ + ‖w‖) + 2⁻¹²⁶ inputs, products and results flushed to 0

The residuals ‖x − x̃‖ and ‖w − w̃‖ are measured, not bounded: about 0.58 of the worst case. What
decides afterwards is itself a float32 product with an error of γ ‖x‖ ‖w‖, so γ is taken twice.
Norms are computed in float32, with an error of γ relative to themselves, which `SLACK` covers, and
of √n·2⁻⁶³ where squares underflow (and denormals are flushed), which is added to them.

Tensor cores add products of bfloat16 in float32, but align and truncate up to 17 terms at a time
(Fasi, Higham, Mikaitis, Pranesh 2021, Numerical behavior of NVIDIA tensor cores): an addition may
lose 2⁻²³ of the largest of its terms where float32's own loses u of its result, so that their
error is within 4γ ‖x̃‖ ‖w̃‖. Their result is not rounded to bfloat16.

For a float32 tile x̃ = x and w̃ = w: only the two γ terms and the underflow stay, so the support
does not depend on the precision that was searched in. (Issue 4; Higham, Accuracy and Stability
of Numerical Algorithms, section 3.1.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOAT32_UNIT = 2.0**-24
FLUSHED = 2.0**-126
SLACK = 1.01
"""Covers the rounding of the bound itself, for vectors of up to 2¹⁶ elements."""

TENSOR_CORES = 4
"""γ are lost by their additions, where float32's own lose one."""

COMPARISON = 2.0**-20
"""Covers the rounding of `tile + bound` itself, as a share of ‖x̃‖ ‖w̃‖ ≥ |tile|."""

LARGEST_NORM = 1e18
"""Products of norms beyond it could overflow float32; such a batch takes the dense path."""


class Bound(NamedTuple):
    """|π − tile| ≤ slope·|tile| + by_norm_B·norm_M + by_residual_B·residual_M + floor_B."""

    slope: float
    by_norm_B: Tensor
    by_residual_B: Tensor
    floor_B: Tensor
    norm_M: Tensor
    residual_M: Tensor

    def candidates(self, tile_BM: Tensor, b_gate_M: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and features whose gate is open, or undecided."""
        margin = self.slope * tile_BM.abs() + self.floor_B[:, None]
        margin += self.by_norm_B[:, None] * self.norm_M
        margin += self.by_residual_B[:, None] * self.residual_M
        surely_closed_below = -b_gate_M - COMPARISON * b_gate_M.abs()
        rows, features = (tile_BM + margin > surely_closed_below).nonzero(as_tuple=True)
        return rows, features


def bfloat16_bound(
    n: int, norm_B: Tensor, residual_B: Tensor, norm_M: Tensor, residual_M: Tensor
) -> Bound:
    """For a product of operands rounded to bfloat16 whose result is bfloat16 too.

    Args:
        n: the length of the vectors.
        norm_B, norm_M: ‖x‖ and ‖w‖ of the exact operands.
        residual_B, residual_M: ‖x − x̃‖ and ‖w − w̃‖.
    """
    return _of_rounded(n, norm_B, residual_B, norm_M, residual_M, slope=2.0**-8 * SLACK)


def tensor_core_bound(
    n: int, norm_B: Tensor, residual_B: Tensor, norm_M: Tensor, residual_M: Tensor
) -> Bound:
    """`bfloat16_bound` where a GPU's tensor cores give the result in float32."""
    return _of_rounded(n, norm_B, residual_B, norm_M, residual_M, slope=0.0)


def _of_rounded(
    n: int,
    norm_B: Tensor,
    residual_B: Tensor,
    norm_M: Tensor,
    residual_M: Tensor,
    *,
    slope: float,
) -> Bound:
    lost = _underflown(n)
    # ‖x̃‖ ≤ ‖x‖ + ‖x − x̃‖, likewise w̃; 1.02 covers ‖w̃‖ / ‖w‖.
    rounded_B = norm_B + residual_B + 2 * lost
    share = 1.02 * ((TENSOR_CORES + 1) * _gamma(n) + COMPARISON)
    return Bound(
        slope=slope,
        by_norm_B=SLACK * (residual_B + lost + share * rounded_B),
        by_residual_B=SLACK * rounded_B,
        floor_B=_floor(n, norm_B, norm_M),
        norm_M=norm_M + lost,
        residual_M=residual_M + lost,
    )


def unchecked_bound(norm_B: Tensor, norm_M: Tensor) -> Bound:
    """No bound at all: what the product says of a gate is believed."""
    zero_B, zero_M = torch.zeros_like(norm_B), torch.zeros_like(norm_M)
    return Bound(0.0, zero_B, zero_B, zero_B, zero_M, zero_M)


def float32_bound(n: int, norm_B: Tensor, norm_M: Tensor) -> Bound:
    """For a float32 product."""
    return _by_norms(n, norm_B, norm_M, share=2 * _gamma(n))


def tf32_bound(n: int, norm_B: Tensor, norm_M: Tensor) -> Bound:
    """For a float32 product on tensor cores, which cut its operands to 11 significant bits."""
    cut = 2 * 2.0**-10 + 2.0**-20
    return _by_norms(n, norm_B, norm_M, share=cut + (TENSOR_CORES + 1) * _gamma(n))


def _by_norms(n: int, norm_B: Tensor, norm_M: Tensor, *, share: float) -> Bound:
    lost = _underflown(n)
    return Bound(
        slope=0.0,
        by_norm_B=SLACK * (share + COMPARISON) * (norm_B + lost),
        by_residual_B=torch.zeros_like(norm_B),
        floor_B=_floor(n, norm_B, norm_M),
        norm_M=norm_M + lost,
        residual_M=torch.zeros_like(norm_M),
    )


def can_be_bounded(norm_B: Tensor, norm_M: Tensor, b_gate_M: Tensor) -> bool:
    """Whether nothing is NaN, no operand infinite, or so large that products could overflow."""
    small = (norm_B < LARGEST_NORM).all() & (norm_M < LARGEST_NORM).all()
    return bool(small & ~b_gate_M.isnan().any())  # one wait for a GPU


def _gamma(n: int) -> float:
    return n * FLOAT32_UNIT / (1 - n * FLOAT32_UNIT)


def _underflown(n: int) -> float:
    return n**0.5 * 2.0**-63


def _floor(n: int, norm_B: Tensor, norm_M: Tensor) -> Tensor:
    return 2 * n * FLUSHED * (2 + norm_B + norm_M.max())
