"""Steers λ until a given number of features fires per token (asked for in SAELens #188, #202).

A proportional-integral controller on the logarithm of L0:

    e = clip(log(mean L0 / target), ±0.7)      I ← I + 0.002 e      λ = λ₀ exp(0.5 e + I)

The clip keeps the start of training, when half of the gates are open, from winding λ up: 300 such
steps, with the lag of the mean, double λ at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

ERROR_LIMIT = 0.7
PROPORTIONAL = 0.5
INTEGRAL = 0.002
SMOOTHING = 0.98


@dataclass
class L0Target:
    """State of the controller: two numbers, which travel with a checkpoint."""

    target: float
    mean_l0: float = 0.0
    integral: float = 0.0

    @property
    def factor(self) -> float:
        """What λ is multiplied by now."""
        return exp(PROPORTIONAL * self._error() + self.integral)

    def observe(self, l0: float) -> None:
        """Take in the mean L0 of the batch that was just encoded."""
        self.mean_l0 = SMOOTHING * self.mean_l0 + (1 - SMOOTHING) * l0 if self.mean_l0 else l0
        self.integral += INTEGRAL * self._error()

    def _error(self) -> float:
        if self.mean_l0 <= 0:
            return 0.0
        return max(-ERROR_LIMIT, min(ERROR_LIMIT, log(self.mean_l0 / self.target)))
