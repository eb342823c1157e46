"""The gated encode: which features fire on each row, and how strongly.

    π = x W_enc      f = 1[π + b_gate > 0] ⊙ ReLU(exp(r_mag) ⊙ π + b_mag)

arXiv 2404.16014, equations 5 to 7. Only the open gates are ever held; see `bound.py` for how they
are found. Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gated_plugin.engine import reference
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.densify import densify
from gated_plugin.engine.dispatch import DENSE, DENSEST_ENCODE, Choice, choose, find_support
from gated_plugin.engine.first_order import first_order
from gated_plugin.engine.support import EncoderWeights


def encode(
    x_BN: Tensor, weights: EncoderWeights, *, impl: str | None = None
) -> tuple[SparseCodes, Choice]:
    """The sparse code of every row, differentiable once in x and the weights, and what served it.

    Args:
        x_BN: what the encoder sees: activations less `b_dec`.
        impl: "numba", "triton", "torch", "dense" or "reference"; None chooses.
    """
    code, choice = encode_either(x_BN, weights, impl=impl)
    return (SparseCodes.from_dense(code) if isinstance(code, Tensor) else code), choice


def encode_dense(
    x_BN: Tensor, weights: EncoderWeights, *, impl: str | None = None
) -> tuple[Tensor, Choice]:
    """`encode`, with its result as a dense tensor [B, M]."""
    code, choice = encode_either(x_BN, weights, impl=impl)
    return (code if isinstance(code, Tensor) else densify(code)), choice


def encode_either(
    x_BN: Tensor, weights: EncoderWeights, *, impl: str | None = None
) -> tuple[SparseCodes | Tensor, Choice]:
    """`encode`, with its result as what served it has it: sparse codes or a dense tensor."""
    choice = choose(x_BN, weights, impl, DENSEST_ENCODE)
    found = find_support(x_BN, weights, choice)
    if found is not None:
        operations, support = found
        values = on_support(operations, support.codes, support.pre_K, x_BN, weights)
        return support.codes.with_values(values.to(x_BN.dtype)), choice
    if choice.impl not in DENSE:
        choice = choice._replace(impl="dense", screened=False)
    return reference.encode(x_BN, weights).to(x_BN.dtype), choice


def on_support(
    operations: ModuleType, codes: SparseCodes, pre_K: Tensor, x_BN: Tensor, weights: EncoderWeights
) -> Tensor:
    """The values [K] of `codes`, which are f of x, differentiable once in x and the weights.

    Args:
        operations: of the implementation that found the support.
        pre_K: π = x · w of every entry.
    """
    values: Tensor = _Magnitude.apply(operations, codes, pre_K, x_BN, *weights)
    return values


class _Magnitude(torch.autograd.Function):
    """f on a support that is already found; the gate itself passes no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        operations: ModuleType,
        codes: SparseCodes,
        pre_K: Tensor,
        x_BN: Tensor,
        W_enc_NM: Tensor,
        b_gate_M: Tensor,
        b_mag_M: Tensor,
        r_mag_M: Tensor,
    ) -> Tensor:
        ctx.operations, ctx.shape = operations, codes.shape
        ctx.save_for_backward(
            x_BN, W_enc_NM, r_mag_M, codes.offsets, codes.features, codes.values, pre_K
        )
        return codes.values.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_values: Tensor) -> tuple[Tensor | None, ...]:
        x_BN, W_enc_NM, r_mag_M, offsets, features, values, pre_K = ctx.saved_tensors
        operations, W_MN, needs = ctx.operations, W_enc_NM.T, ctx.needs_input_grad
        codes = SparseCodes(offsets=offsets, features=features, values=values, shape=ctx.shape)
        d_magnitude = d_values * (values > 0)
        d_pre = d_magnitude * r_mag_M.exp()[features]
        d_x = d_W = d_b_mag = d_r_mag = None
        if needs[3]:
            zero = x_BN.new_zeros(x_BN.shape[1])
            d_x = operations.decode(codes.with_values(d_pre), W_MN, zero)
        if any(needs[4:]):
            by = operations.sort_by_feature(codes)
            d_W = operations.sum_by_feature(by, d_pre, x_BN, W_MN.new_empty(W_MN.shape)).T
            d_b_mag = operations.total_by_feature(by, d_magnitude)
            d_r_mag = operations.total_by_feature(by, d_pre * pre_K)
        return None, None, None, d_x, d_W, None, d_b_mag, d_r_mag
