"""What holds the decoder's rows [M, N] at norm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from gated_plugin.engine.dispatch import compiled_kernels_serve


@torch.no_grad()
def normalise_rows(W_MN: Tensor) -> None:
    """Scale every row to norm 1, in place; a row of zeros has no direction and stays."""
    if can_use_kernels(W_MN):
        from gated_plugin.engine import cpu_weights

        return cpu_weights.normalise_rows(W_MN)
    wide = torch.promote_types(W_MN.dtype, torch.float32)
    norms = torch.linalg.vector_norm(W_MN, dim=1, keepdim=True, dtype=wide)
    W_MN.div_(norms.clamp_min_(torch.finfo(wide).tiny))


@torch.no_grad()
def remove_parallel(gradient_MN: Tensor, W_MN: Tensor) -> None:
    """g ← g − (g · w) w in place, for rows w of norm 1."""
    if can_use_kernels(W_MN, gradient_MN):
        from gated_plugin.engine import cpu_weights

        return cpu_weights.remove_parallel(gradient_MN, W_MN)
    along = (gradient_MN * W_MN).sum(1, keepdim=True)
    gradient_MN.addcmul_(along, W_MN.detach(), value=-1)


def can_use_kernels(*weights_MN: Tensor) -> bool:
    """Whether all are float32 on a CPU, with their rows one after another."""
    return compiled_kernels_serve(*weights_MN) and all(w.is_contiguous() for w in weights_MN)
