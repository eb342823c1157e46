"""Sparse codes to dense features and back, where the dense tensor is what an API asks for.

Shapes: B rows, M d_sae, K entries of the support.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.dispatch import KERNELS, choose_for_codes, implementation, operations_for
from gated_plugin.engine.first_order import first_order

LOOKED_AT_ROWS = 32


def densify(codes: SparseCodes) -> Tensor:
    """Dense features [..., M], differentiable once in the values."""
    operations = operations_for(codes.values)
    dense: Tensor = _Densify.apply(operations, codes, codes.values)
    return dense.view(codes.shape)


def sparsify(features: Tensor, W_MN: Tensor) -> SparseCodes | None:
    """The entries of dense features [..., M], or None where a dense product is the better way.

    Some rows are looked at first, so that dense features cost no pass over memory.
    """
    flat = features.reshape(-1, features.shape[-1])
    some = flat[:: max(1, -(-len(flat) // LOOKED_AT_ROWS))]
    density = some.count_nonzero().item() / max(1, some.numel())
    impl = choose_for_codes(flat, W_MN, density, None)
    if impl not in KERNELS:
        return None
    codes: SparseCodes = implementation(impl).gather(flat)
    return codes.view(*features.shape)


class _Densify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operations: ModuleType, codes: SparseCodes, values_K: Tensor) -> Tensor:
        ctx.save_for_backward(codes.rows, codes.features)
        dense: Tensor = operations.scatter(codes.with_values(values_K.detach()))
        return dense

    @staticmethod
    @first_order
    def backward(ctx: Any, d_dense_BM: Tensor) -> tuple[Tensor | None, ...]:
        rows, features = ctx.saved_tensors
        return None, None, d_dense_BM[rows, features]
