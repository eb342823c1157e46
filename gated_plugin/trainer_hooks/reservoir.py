"""A weighted sample of a stream's rows, without a second pass (Efraimidis and Spirakis 2006).

A row of weight w gets the key u^(1/w), u uniform on (0, 1); the R largest keys of the stream are a
sample without replacement in which each draw takes a row with probability ∝ w, and the n largest of
them are such a sample of n. Kept as −log(−log key), which has the same order and no range to leave:

    key = log w + g        g = −log E,  E exponential with mean 1
"""

from __future__ import annotations

import torch
from torch import Tensor

SEED = 20240424
"""Of the random numbers; the day of arXiv 2404.16014. Batches differ between runs, these do not."""


class Reservoir:
    """At most `capacity` rows; their memory is there only while it holds some."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys_R: Tensor | None = None
        """float64 [capacity]; −∞ where no row is held."""
        self.rows_RN: Tensor | None = None

    @torch.no_grad()
    def offer(self, rows_BN: Tensor, log_weights_B: Tensor, *, seed: int) -> None:
        """Let a batch compete for the places; a row of weight 0 (−∞) gets none.

        Args:
            log_weights_B: float64.
            seed: a number of this batch alone, such as its step.
        """
        keys_B = log_weights_B - _exponential(log_weights_B, seed).log_()
        held_R, rows_RN = self._places(rows_BN)
        entering = (keys_B > held_R.min()).nonzero().squeeze(1)
        if not len(entering):
            return
        keys = torch.cat([held_R, keys_B[entering]])
        stays = torch.zeros_like(keys, dtype=torch.bool)
        stays[keys.topk(self.capacity, sorted=False).indices] = True
        places = (~stays[: self.capacity]).nonzero().squeeze(1)
        chosen = entering[stays[self.capacity :]]
        rows_RN[places] = rows_BN[chosen].to(rows_RN.dtype)
        held_R[places] = keys_B[chosen]

    def take(self, count: int) -> Tensor | None:
        """The `count` rows of largest keys, or as many as there are; None of an empty reservoir."""
        if self.keys_R is None or self.rows_RN is None:
            return None
        keys, places = self.keys_R.topk(min(count, self.capacity))
        return self.rows_RN[places[keys > -torch.inf]]

    def clear(self) -> None:
        """Give up rows and memory."""
        self.keys_R = self.rows_RN = None

    def _places(self, rows_BN: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys_R is None or self.rows_RN is None:
            shape = (self.capacity, rows_BN.shape[1])
            self.rows_RN = rows_BN.new_zeros(shape)
            self.keys_R = rows_BN.new_full(shape[:1], -torch.inf, dtype=torch.float64)
        elif self.keys_R.device != rows_BN.device:  # loaded from a checkpoint
            self.rows_RN = self.rows_RN.to(rows_BN.device)
            self.keys_R = self.keys_R.to(rows_BN.device)
        return self.keys_R, self.rows_RN


def _exponential(like_B: Tensor, seed: int) -> Tensor:
    """Drawn on the CPU, from a generator of its own: the same on every device."""
    generator = torch.Generator().manual_seed(SEED + seed)
    drawn = torch.empty(like_B.shape, dtype=torch.float64).exponential_(generator=generator)
    return drawn.to(like_B.device)
