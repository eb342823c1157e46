"""The features of a sparse step: dense to whoever asks, on the support for whoever counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self, override

from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.densify import densify
from gated_plugin.engine.lazy_features import LazyFeatures


class StepFeatures(LazyFeatures):
    """A tensor [B, M] that is held as sparse codes until an operation needs it dense.

    At (2048, 768, 24576) and L0 64 counting takes 1 ms a step, where torch's sparse tensors, which
    sort at each sum, take 15 and dense ones 110.
    """

    codes: SparseCodes

    @staticmethod
    def __new__(cls, codes: SparseCodes) -> Self:
        """Wrap codes of two dimensions; differentiable where their values are."""
        return torch.Tensor._make_wrapper_subclass(
            cls,
            codes.shape,
            dtype=codes.values.dtype,
            device=codes.values.device,
            requires_grad=codes.values.requires_grad,
        )

    def __init__(self, codes: SparseCodes) -> None:
        self.codes, self.dense = codes, None

    @override
    def made_dense(self) -> Tensor:
        return densify(self.codes)


def _cast_to(dtype: torch.dtype) -> Callable[..., StepFeatures | None]:
    def cast(features: StepFeatures, **kwargs: Any) -> StepFeatures | None:
        codes = features.codes
        return None if kwargs else StepFeatures(codes.with_values(codes.values.to(dtype)))

    return cast


def _detach(features: StepFeatures) -> StepFeatures:
    return StepFeatures(features.codes.with_values(features.codes.values.detach()))


def _sum(features: StepFeatures, dim: Any = None, **kwargs: Any) -> Tensor | None:
    """None where the dense tensor has to be summed."""
    codes = features.codes
    if kwargs or not codes.values.is_floating_point():
        return None
    if dim is None:
        return codes.values.sum()
    if dim in (0, -2):
        return codes.values.new_zeros(codes.shape[1]).index_add(0, codes.features, codes.values)
    if dim in (1, -1):
        return codes.values.new_zeros(codes.shape[0]).index_add(0, codes.rows, codes.values)
    return None


StepFeatures.at_hand = {
    Tensor.bool: _cast_to(torch.bool),
    Tensor.float: _cast_to(torch.float32),
    Tensor.detach: _detach,
    Tensor.sum: _sum,
}
