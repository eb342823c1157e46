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

from gated_plugin.engine.weight_rows import normalise_rows, remove_parallel

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


def _remove_parallel_gradient(W_MN: Tensor) -> None:
    assert W_MN.grad is not None  # torch calls this hook just after it has written the gradient
    remove_parallel(W_MN.grad, W_MN)


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in _held:
                normalise_rows(parameter)
