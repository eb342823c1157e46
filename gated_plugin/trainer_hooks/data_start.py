"""Starts features at inputs instead of at random directions: `start: data`.

    b_dec = mean of the first batch      w_dec = (x − b_dec) / ‖x − b_dec‖      w_enc = s · w_dec

Each batch starts as many features as it has rows, until all have begun: ⌈d_sae / batch⌉ steps, in
which a learning rate that warms up has hardly moved a weight. A direction that an input has is one
that inputs of its kind open, so that fewer features die (docs/dead-features.md).
Shapes: B batch, N d_in, M d_sae.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gated_plugin.trainer_hooks.revival import FeatureWeights

SMALLEST_NORM = 1e-12
"""An input that is the mean itself has no direction; its feature keeps its random one."""


@dataclass
class DataStart:
    """State of one SAE's start; `begun` travels with a checkpoint."""

    d_sae: int
    begun: int = 0
    """Features that have been set."""

    @property
    def is_over(self) -> bool:
        """Whether all have."""
        return self.begun == self.d_sae

    @torch.no_grad()
    def begin(self, sae: Any, seen_BN: Tensor) -> None:
        """Set the next features, before the forward pass of a batch; not to be called once `is_over`.

        Args:
            sae: with `W_dec`, `b_dec` and encoders; `cfg.encoder_init_norm` is s.
            seen_BN: the batch in the units that W_dec writes in, [..., N]; finite.
        """
        rows_BN = seen_BN.reshape(-1, seen_BN.shape[-1])
        if not self.begun:
            sae.b_dec.copy_(rows_BN.mean(0))
        inputs_BN = (rows_BN - sae.b_dec)[: self.d_sae - self.begun]
        features_B = torch.arange(self.begun, self.begun + len(inputs_BN), device=rows_BN.device)
        self.begun += len(inputs_BN)
        with_direction = inputs_BN.norm(dim=1) > SMALLEST_NORM
        self._set(sae, features_B[with_direction], inputs_BN[with_direction])

    def _set(self, sae: Any, features_D: Tensor, inputs_DN: Tensor) -> None:
        weights = FeatureWeights.of(sae)
        directions_DN = nn.functional.normalize(inputs_DN, dim=1)
        weights.W_dec_MN[features_D] = directions_DN.to(weights.W_dec_MN.dtype)
        for W_NM in weights.encoders_NM:
            W_NM[:, features_D] = (sae.cfg.encoder_init_norm * directions_DN).T.to(W_NM.dtype)
