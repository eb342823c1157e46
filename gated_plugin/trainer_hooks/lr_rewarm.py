"""Lowers the learning rate after features were resampled, and lets it climb back.

    factor(k) = 0.1 + 0.9 (1 − cos(π k / R)) / 2        k steps after the resampling, of R

(arXiv 2404.16014.) It is multiplied into the learning rate just before an optimizer
steps and taken out just after, so that a trainer's schedulers, some of which reckon from the rate
they find, see their own. Nothing is kept on a Parameter or an optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.weak import WeakTensorKeyDictionary

from gated_plugin.trainer_hooks import adam

LOWEST = 0.1


@dataclass
class LrRewarm:
    """Where the climb is: one number, which travels with a checkpoint."""

    steps: int
    """R; 0 leaves the learning rate alone."""

    position: int | None = None
    """k of the next optimizer step; None before the first resampling, and after a climb."""

    @property
    def factor(self) -> float:
        """What the learning rate of the next optimizer step is multiplied by."""
        if self.position is None:
            return 1.0
        return LOWEST + (1 - LOWEST) * (1 - cos(pi * self.position / self.steps)) / 2

    def begin(self) -> None:
        """Features were resampled just now."""
        self.position = 0 if self.steps else None

    def advance(self) -> None:
        """An optimizer step was taken."""
        if self.position is not None:
            self.position = self.position + 1 if self.position + 1 < self.steps else None


_rewarmed: Any = WeakTensorKeyDictionary()
_found: WeakKeyDictionary[Optimizer, list[tuple[dict[str, Any], Any]]] = WeakKeyDictionary()
_listening: list[Any] = []


@torch.compiler.disable
def rewarm(parameters: Iterable[nn.Parameter], by: LrRewarm) -> None:
    """From now on groups of an optimizer that hold one of these step at `by.factor`. Idempotent."""
    for parameter in parameters:
        _rewarmed[parameter] = by
    if not _listening:
        _listening.append(register_optimizer_step_pre_hook(_before_step))
        _listening.append(register_optimizer_step_post_hook(_after_step))
        adam.listen_last()  # it reads the learning rate


def _before_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    _restore(optimizer)  # a step that raised has left its own
    for group in optimizer.param_groups:
        factor = min((_rewarmed[p].factor for p in group["params"] if p in _rewarmed), default=1.0)
        if factor != 1:
            _found.setdefault(optimizer, []).append((group, group["lr"]))
            group["lr"] = group["lr"] * factor


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    _restore(optimizer)


def _restore(optimizer: Optimizer) -> None:
    for group, lr in _found.pop(optimizer, ()):
        group["lr"] = lr
