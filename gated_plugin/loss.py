"""The three terms of the Gated SAE's loss (arXiv 2404.16014, section 3.2.2), as pure functions.

    L(x) = ‖x − x̂‖² + λ ‖ReLU(π_gate)‖₁ + ‖x − x̂_frozen(ReLU(π_gate))‖²

Sums over the activation's dimensions and over the features, mean over the batch.
Shapes: B batch (any leading dimensions), N d_in, M d_sae.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GatedLoss(NamedTuple):
    """The terms of the loss, each a scalar in squared activation units."""

    reconstruction: Tensor
    sparsity: Tensor
    auxiliary: Tensor


def gated_loss(
    x_BN: Tensor,
    x_hat_BN: Tensor,
    seen_BN: Tensor,
    pi_gate_BM: Tensor,
    W_dec_MN: Tensor,
    b_dec_N: Tensor,
    l1: float,
    *,
    live: bool = False,
    weighted: bool = False,
) -> GatedLoss:
    """All three terms.

    Args:
        x_BN: what is to be reconstructed.
        x_hat_BN: its reconstruction from the features.
        seen_BN: x as the encoder sees it: x itself, unless activations are normalised at run time.
        pi_gate_BM: pre-activations of the gate.
        W_dec_MN, b_dec_N: the decoder, through which the gate's terms pass no gradient.
        l1: λ, for a squared error that is summed over N.
        live: ablation: the gradients of the gate's terms reach the decoder.
        weighted: ablation: λ Σ ReLU(π_gate) ‖w_dec‖, for a decoder of free norm.
    """
    gate_BM = torch.relu(pi_gate_BM)
    W_gate_MN, b_gate_N = (w if live else w.detach() for w in (W_dec_MN, b_dec_N))
    return GatedLoss(
        reconstruction=squared_error(x_BN, x_hat_BN),
        sparsity=sparsity_penalty(gate_BM * W_gate_MN.norm(dim=1) if weighted else gate_BM, l1),
        auxiliary=auxiliary_error(seen_BN, gate_BM, W_gate_MN, b_gate_N),
    )


def squared_error(x_BN: Tensor, x_hat_BN: Tensor) -> Tensor:
    """‖x − x̂‖², in at least float32 whatever the activations' type."""
    wide = torch.promote_types(x_BN.dtype, torch.float32)
    return (x_hat_BN.to(wide) - x_BN.to(wide)).pow(2).sum(-1).mean()


def sparsity_penalty(gate_BM: Tensor, l1: float) -> Tensor:
    """λ ‖ReLU(π_gate)‖₁: rows of a unit-norm decoder need no weight before it."""
    return l1 * gate_BM.sum(-1).mean()


def auxiliary_error(x_BN: Tensor, gate_BM: Tensor, W_dec_MN: Tensor, b_dec_N: Tensor) -> Tensor:
    """‖x − x̂(ReLU(π_gate))‖²: teaches the gate to detect; by a detached decoder, that alone."""
    return squared_error(x_BN, gate_BM.to(W_dec_MN.dtype) @ W_dec_MN + b_dec_N)
