"""The features of a dense step that is too large to keep them: counted, and computed when asked for.

Shapes: B rows, M d_sae, F features of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self, override

from gated_plugin.engine.lazy_features import LazyFeatures


class Sums(NamedTuple):
    """Of a tensor [B, M]."""

    over_rows_M: Tensor
    over_features_B: Tensor


class FeatureCounts(NamedTuple):
    """What firing statistics need to know of features."""

    values: Sums
    firing: Sums


class Totals:
    """Adds up `FeatureCounts` tile by tile."""

    def __init__(self) -> None:
        self.parts: list[FeatureCounts] = []

    def add(self, features_BF: Tensor) -> None:
        """Count the next F features."""
        values = Sums(features_BF.sum(0), features_BF.sum(1))
        firing = (features_BF != 0).to(features_BF.dtype)
        self.parts.append(FeatureCounts(values, Sums(firing.sum(0), firing.sum(1))))

    def counts(self) -> FeatureCounts:
        """Of all features that were added."""
        return FeatureCounts(*(_joined(kind) for kind in zip(*self.parts, strict=True)))


def _joined(parts: tuple[Sums, ...]) -> Sums:
    return Sums(
        torch.cat([part.over_rows_M for part in parts]),
        torch.stack([part.over_features_B for part in parts]).sum(0),
    )


class CountedFeatures(LazyFeatures):
    """A tensor [B, M] of which only `FeatureCounts` are kept, until an operation needs it dense."""

    counts: FeatureCounts
    compute: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, counts: FeatureCounts, compute: Callable[[], Tensor], *, dtype: torch.dtype, grad: bool
    ) -> Self:
        """Features of type `dtype` that `compute` makes dense, with a gradient where `grad`."""
        over_rows_M, over_features_B = counts.values
        return torch.Tensor._make_wrapper_subclass(
            cls,
            (len(over_features_B), len(over_rows_M)),
            dtype=dtype,
            device=over_rows_M.device,
            requires_grad=grad,
        )

    def __init__(
        self,
        counts: FeatureCounts,
        compute: Callable[[], Tensor],
        *,
        dtype: torch.dtype,
        grad: bool,
    ) -> None:
        self.counts, self.compute, self.dense = counts, compute, None

    @override
    def made_dense(self) -> Tensor:
        return self.compute()


def _detach(features: CountedFeatures) -> CountedFeatures:
    def compute() -> Tensor:
        return features.materialised().detach()

    return CountedFeatures(features.counts, compute, dtype=features.dtype, grad=False)


def _bool(features: CountedFeatures, **kwargs: Any) -> CountedFeatures | None:
    if kwargs:
        return None
    firing = features.counts.firing
    return CountedFeatures(
        FeatureCounts(firing, firing),
        lambda: features.materialised().bool(),
        dtype=torch.bool,
        grad=False,
    )


def _float(features: CountedFeatures, **kwargs: Any) -> CountedFeatures | None:
    if kwargs or features.dtype != torch.bool:
        return None
    return CountedFeatures(
        features.counts,
        lambda: features.materialised().float(),
        dtype=torch.float32,
        grad=False,
    )


def _sum(features: CountedFeatures, dim: Any = None, **kwargs: Any) -> Tensor | None:
    """None where the dense tensor has to be summed."""
    wants_gradient = features.requires_grad and torch.is_grad_enabled()
    if kwargs or wants_gradient or not features.is_floating_point():
        return None
    over_rows_M, over_features_B = features.counts.values
    if dim is None:
        return over_rows_M.sum()
    return {0: over_rows_M, -2: over_rows_M, 1: over_features_B, -1: over_features_B}.get(dim)


CountedFeatures.at_hand = {
    Tensor.bool: _bool,
    Tensor.float: _float,
    Tensor.detach: _detach,
    Tensor.sum: _sum,
}
