"""Figures over activations, summed batch by batch in float64 (arXiv 2404.16014, section 4.1).

L0     mean number of features that fire
γ      E‖x̂‖² / E[x̂·x]; below 1 is shrinkage, 1 is unbiased (section 4.2)
FVU    Σ‖x − x̂‖² / Σ‖x − mean x‖²
alive  share of features that fire at least once

A ratio with the denominator 0, such as the γ of an x̂ that is always 0, is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReconstructionFigures:
    """What `ReconstructionSums` amounts to."""

    l0: float
    gamma: float | None
    fvu: float | None
    alive: float
    tokens: int


class ReconstructionSums:
    """Running sums over activations [batch, d_in] and features [batch, d_sae]."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        self.tokens = 0
        self.fired = torch.zeros(d_sae, dtype=torch.float64)
        """Tokens on which each feature fired."""
        self.magnitude = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of each feature's activations."""
        self._x = torch.zeros(d_in, dtype=torch.float64)
        self._x_squared = self._error = self._norm = self._dot = 0.0

    def update(self, x: Tensor, x_hat: Tensor, features: Tensor) -> None:
        """Take in one batch."""
        x, x_hat = x.double(), x_hat.double()
        self.tokens += len(x)
        self.fired += (features != 0).sum(0).double().cpu()
        self.magnitude += features.double().sum(0).cpu()
        self._x += x.sum(0).cpu()
        self._x_squared += x.square().sum().item()
        self._error += (x - x_hat).square().sum().item()
        self._norm += x_hat.square().sum().item()
        self._dot += (x_hat * x).sum().item()

    def figures(self) -> ReconstructionFigures:
        """The figures over all batches so far."""
        variance = self._x_squared - self._x.square().sum().item() / self.tokens
        return ReconstructionFigures(
            l0=self.fired.sum().item() / self.tokens,
            gamma=_ratio(self._norm, self._dot),
            fvu=_ratio(self._error, variance),
            alive=(self.fired > 0).double().mean().item(),
            tokens=self.tokens,
        )


def loss_recovered(ce_clean: float, ce_sae: float, ce_zero: float) -> float | None:
    """1 − (CE(x̂) − CE(x)) / (CE(0) − CE(x)); 1 is a perfect splice, 0 no better than zeroing."""
    return _ratio(ce_zero - ce_sae, ce_zero - ce_clean)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
