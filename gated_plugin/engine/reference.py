"""The operations in plain dense torch: what the others must equal, in float64 the truth.

Shapes: B rows, N d_in, M d_sae.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gated_plugin.engine.support import EncoderWeights
from gated_plugin.loss import GatedLoss, gated_loss


def encode(x_BN: Tensor, weights: EncoderWeights) -> Tensor:
    """Dense features [B, M]; a gate whose pre-activation is NaN counts as open."""
    pre = x_BN @ weights.W_enc_NM
    return features(pre, magnitude_pre(pre, weights), weights)


def magnitude_pre(pre_BM: Tensor, weights: EncoderWeights) -> Tensor:
    """exp(r_mag) ⊙ π + b_mag, from the product π that both paths share."""
    return torch.addcmul(weights.b_mag_M, pre_BM, weights.r_mag_M.exp())


def features(pre_BM: Tensor, magnitude_pre_BM: Tensor, weights: EncoderWeights) -> Tensor:
    """f, from π and the magnitude's pre-activations."""
    # π + b_gate ≤ 0 ⟺ π ≤ −b_gate, also in floating point.
    closed = pre_BM <= -weights.b_gate_M
    return torch.relu(magnitude_pre_BM).masked_fill(closed, 0)


def step(
    seen_BN: Tensor,
    x_BN: Tensor,
    weights: EncoderWeights,
    W_dec_MN: Tensor,
    b_dec_N: Tensor,
    l1: float,
) -> tuple[GatedLoss, Tensor, Tensor]:
    """The three terms of the loss, x̂ and the features; autograd does the rest."""
    pre = seen_BN @ weights.W_enc_NM
    f = features(pre, magnitude_pre(pre, weights), weights)
    x_hat = f.to(W_dec_MN.dtype) @ W_dec_MN + b_dec_N
    terms = gated_loss(x_BN, x_hat, x_BN, pre + weights.b_gate_M, W_dec_MN, b_dec_N, l1)
    return terms, x_hat, f
