"""Features that are dense to whoever asks for it, and held otherwise until then."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class LazyFeatures(Tensor):
    """A tensor [B, M] that is not in memory until an operation needs it dense.

    SAELens' trainer only casts and sums features for its firing statistics: that is answered
    `at_hand`. Anything else makes them dense, once, and for good.
    """

    dense: Tensor | None
    at_hand: ClassVar[Mapping[Any, Callable[..., Tensor | None]]]
    """What needs no dense tensor, by function of torch; None where it does after all."""

    @abstractmethod
    def made_dense(self) -> Tensor:
        """[B, M], with the gradient that it has."""

    def materialised(self) -> Tensor:
        """The dense tensor, from now on held."""
        if self.dense is None:
            # Who asks first may want no gradient; the next one may.
            with torch.set_grad_enabled(self.requires_grad):
                self.dense = self.made_dense()
        return self.dense

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA or getattr(func, "__self__", None) in PROPERTIES:
            return super().__torch_function__(func, types, args, kwargs)
        if func in cls.at_hand and isinstance(args[0], cls) and args[0].dense is None:
            result = cls.at_hand[func](*args, **kwargs)
            if result is not None:
                return result
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's stub has no cls
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(LazyFeatures, LazyFeatures.materialised, (args, kwargs or {}))
        return func(*args, **kwargs)


METADATA = (
    Tensor.__len__,
    Tensor.dim,
    Tensor.is_floating_point,
    Tensor.numel,
    Tensor.size,
)

PROPERTIES = (
    Tensor.device,
    Tensor.dtype,
    Tensor.is_sparse,
    Tensor.layout,
    Tensor.ndim,
    Tensor.requires_grad,
    Tensor.shape,
)
