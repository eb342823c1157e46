"""The decode: x̂ = Σ f W_dec[feature] + b_dec over the features that fire.

Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.dispatch import DENSE, choose_for_codes, implementation
from gated_plugin.engine.first_order import first_order
from gated_plugin.errors import GatedError


def decode(
    codes: SparseCodes, W_dec_MN: Tensor, b_dec_N: Tensor, *, impl: str | None = None
) -> Tensor:
    """Reconstructions [..., N] of sparse codes [..., M], differentiable once.

    Args:
        impl: "numba", "triton", "torch", "dense" or "reference"; None chooses.

    Raises:
        GatedError: the codes are not as wide as the decoder, or name features outside of it.
    """
    if codes.shape[-1] != len(W_dec_MN):
        raise GatedError(
            f"The codes have d_sae = {codes.shape[-1]}, but this decoder has {len(W_dec_MN)}; "
            "decode them with the SAE that encoded them."
        )
    _require_inside(codes)
    impl = choose_for_codes(codes.values, W_dec_MN, codes.density, impl)
    if impl in DENSE:
        return codes.to_dense() @ W_dec_MN + b_dec_N
    out: Tensor = _Decode.apply(implementation(impl), codes, codes.values, W_dec_MN, b_dec_N)
    return out.view(*codes.shape[:-1], W_dec_MN.shape[1])


def _require_inside(codes: SparseCodes) -> None:
    """Kernels read and write where the codes say."""
    offsets, features = codes.offsets, codes.features
    inside = not len(features) or (features.min() >= 0 and features.max() < codes.shape[-1])
    rows = len(offsets) == codes.shape[:-1].numel() + 1
    whole = offsets[0] == 0 and offsets[-1] == len(features) == len(codes.values)
    if not (inside and rows and whole and (offsets.diff() >= 0).all()):
        raise GatedError(
            "The sparse codes are malformed: features or offsets lie outside of their shape "
            f"{tuple(codes.shape)}; make codes by encode_sparse or SparseCodes.from_dense."
        )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        operations: ModuleType,
        codes: SparseCodes,
        values_K: Tensor,
        W_MN: Tensor,
        b_N: Tensor,
    ) -> Tensor:
        ctx.operations, ctx.shape = operations, codes.shape
        ctx.save_for_backward(W_MN, codes.offsets, codes.features, values_K)
        out: Tensor = operations.decode(codes.with_values(values_K.detach()), W_MN, b_N)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out_BN: Tensor) -> tuple[Tensor | None, ...]:
        W_MN, offsets, features, values = ctx.saved_tensors
        operations = ctx.operations
        codes = SparseCodes(
            offsets=offsets, features=features, values=values.detach(), shape=ctx.shape
        )
        d_out_BN = d_out_BN.contiguous()
        d_values = d_W = None
        if ctx.needs_input_grad[2]:
            d_values = operations.sample(codes, d_out_BN, W_MN)
        if ctx.needs_input_grad[3]:
            by = operations.sort_by_feature(codes)
            d_W = operations.sum_by_feature(by, codes.values, d_out_BN, W_MN.new_empty(W_MN.shape))
        return None, None, d_values, d_W, d_out_BN.sum(0)
