"""Backward passes that cannot be differentiated again, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from gated_plugin.errors import GatedError


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For `backward` of an autograd Function whose gradients have no graph of their own.

    torch's `once_differentiable` says nothing where the incoming gradient needs none: a penalty on
    the result would then train nothing.
    """

    @wraps(backward)
    def checked(*args: Any) -> Any:
        if torch.is_grad_enabled():
            raise GatedError(
                "The sparse engine has no second derivatives (create_graph=True); compute this "
                'within `with gated_plugin.engine.options.use(impl="reference")`.'
            )
        return backward(*args)

    return checked
