"""Holds decoder rows at norm 1 while any optimizer trains them (arXiv 2404.16014, appendix G).

The gradient's component along a row is removed when the gradient is complete, before a trainer
clips. The rows are put back to norm 1 after the step, through torch's own optimizer hooks, so that
it works in every trainer and in a bare loop. Nothing is kept on the Parameter: a deep copy or a
Parameter put in by `load_state_dict(assign=True)` is simply held anew at its first use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

_held = WeakTensorKeyDictionary()
_listening: list[Any] = []


@torch.compiler.disable
def hold_unit_norm(W_dec: nn.Parameter) -> bool:
    """From now on the rows of `W_dec` [M, N] have norm 1 after every optimizer step. Idempotent.

    Within 1e-6 in float32; bfloat16 itself cannot do better than 2e-4 to 6e-4.

    Returns:
        Whether it was not held before: then its rows may still have any norm.
    """
    if not W_dec.requires_grad or W_dec in _held:
        return False
    if not _listening:
        _listening.append(register_optimizer_step_post_hook(_after_step))
    _held[W_dec] = W_dec.register_post_accumulate_grad_hook(_remove_parallel_gradient)
    return True


@torch.no_grad()
def normalise_rows(W_MN: Tensor) -> None:
    """Scale every row to norm 1, in place; a row of zeros has no direction and stays."""
    wide = torch.promote_types(W_MN.dtype, torch.float32)
    norms = torch.linalg.vector_norm(W_MN, dim=1, keepdim=True, dtype=wide)
    W_MN.div_(norms.clamp_min_(torch.finfo(wide).tiny))


@torch.no_grad()
def _remove_parallel_gradient(W_MN: Tensor) -> None:
    """g ← g − (g·w) w, for rows w of norm 1."""
    assert W_MN.grad is not None  # torch calls this hook just after it has written the gradient
    along = (W_MN.grad * W_MN).sum(1, keepdim=True)
    W_MN.grad.addcmul_(along, W_MN.detach(), value=-1)


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in _held:
                normalise_rows(parameter)
