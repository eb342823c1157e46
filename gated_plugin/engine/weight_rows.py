"""What holds the decoder's rows [M, N] at norm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gated_plugin.engine.dispatch import kernels_for


@torch.no_grad()
def normalise_rows(W_MN: Tensor) -> None:
    """Scale every row to norm 1, in place; a row of zeros has no direction and stays."""
    kernels = kernels_on_rows(W_MN)
    if kernels is not None:
        return kernels.normalise_rows(W_MN)
    wide = torch.promote_types(W_MN.dtype, torch.float32)
    norms = torch.linalg.vector_norm(W_MN, dim=1, keepdim=True, dtype=wide)
    W_MN.div_(norms.clamp_min_(torch.finfo(wide).tiny))


@torch.no_grad()
def remove_parallel(gradient_MN: Tensor, W_MN: Tensor) -> None:
    """g ← g − (g · w) w in place, for rows w of norm 1."""
    kernels = kernels_on_rows(W_MN, gradient_MN)
    if kernels is not None:
        return kernels.remove_parallel(gradient_MN, W_MN)
    along = (gradient_MN * W_MN).sum(1, keepdim=True)
    gradient_MN.addcmul_(along, W_MN.detach(), value=-1)


def kernels_on_rows(*weights_MN: Tensor) -> Any:
    """The module of ours whose kernels serve weights whose rows lie one after another, or None."""
    if not all(w.is_contiguous() for w in weights_MN):
        return None
    kernels = kernels_for(*weights_MN)
    if kernels == "triton":
        from gated_plugin.engine import gpu_weights

        return gpu_weights
    if kernels == "numba":
        from gated_plugin.engine import cpu_weights

        return cpu_weights
    return None
