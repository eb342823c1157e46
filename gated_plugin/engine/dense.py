"""The training step with every gate computed: for the start of training, when half are open.

Seven dense products instead of SAELens' thirteen: one encode, two decodes, their two
mirrors, and the two weights' gradients; the gradients of the biases are sums. The
formulas are those of `step.py`. Shapes: B rows, N d_in, M d_sae.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gated_plugin.engine.dispatch import operations_for
from gated_plugin.engine.first_order import first_order
from gated_plugin.engine.kept_memory import ACTIVATIONS, GRADIENTS
from gated_plugin.engine.support import EncoderWeights


class DenseStep(torch.autograd.Function):
    """Gives reconstruction, sparsity and auxiliary loss, x̂ and the features."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BN: Tensor,
        seen_BN: Tensor,
        l1: float,
        centred: bool,
        W_enc_NM: Tensor,
        b_gate_M: Tensor,
        b_mag_M: Tensor,
        r_mag_M: Tensor,
        W_dec_MN: Tensor,
        b_dec_N: Tensor,
    ) -> tuple[Tensor, ...]:
        B = len(x_BN)
        weights = EncoderWeights(W_enc_NM, b_gate_M, b_mag_M, r_mag_M)
        operations = operations_for(seen_BN, W_enc_NM)
        shape = (B, W_enc_NM.shape[1])
        pre = torch.mm(seen_BN, W_enc_NM, out=ACTIVATIONS.take(W_dec_MN, shape))
        features, gate = operations.activate(pre, weights, ACTIVATIONS.take(W_dec_MN, shape))
        x_hat = torch.addmm(b_dec_N, features, W_dec_MN)
        error = x_hat - x_BN
        frozen_error = torch.addmm(b_dec_N, gate, W_dec_MN).sub_(x_BN)
        ctx.operations, ctx.l1, ctx.centred = operations, l1, centred
        ctx.save_for_backward(
            seen_BN, features, gate, error, frozen_error, W_enc_NM, b_mag_M, r_mag_M, W_dec_MN
        )
        ctx.set_materialize_grads(False)
        return (
            error.square().sum() / B,
            l1 / B * gate.sum(),
            frozen_error.square().sum() / B,
            x_hat,
            features,
        )

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        d_reconstruction: Tensor | None,
        d_sparsity: Tensor | None,
        d_auxiliary: Tensor | None,
        d_x_hat_BN: Tensor | None,
        d_features_BM: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        seen_BN, features_BM, gate_BM, error_BN, frozen_BN, W_enc_NM, b_mag_M, r_mag_M, W_dec_MN = (
            ctx.saved_tensors
        )
        B = len(seen_BN)
        d_x_hat = 2 / B * or_zero(d_reconstruction) * error_BN
        if d_x_hat_BN is not None:
            d_x_hat = d_x_hat + d_x_hat_BN
        d_f_BM, d_gate_BM = (ACTIVATIONS.take(W_dec_MN, features_BM.shape) for _ in range(2))
        torch.mm(d_x_hat, W_dec_MN.T, out=d_f_BM)
        if d_features_BM is not None:
            d_f_BM += d_features_BM
        torch.mm(2 / B * or_zero(d_auxiliary) * frozen_BN, W_dec_MN.T, out=d_gate_BM)
        penalty = ctx.l1 / B * or_zero(d_sparsity)
        d_pre_BM, totals = ctx.operations.back_to_pre(
            features_BM, gate_BM, d_f_BM, d_gate_BM, float(penalty), b_mag_M, r_mag_M
        )
        W_enc_MN = W_enc_NM.T
        d_W_enc_MN = GRADIENTS.take(W_enc_NM, W_enc_MN.shape)
        d_W_dec_MN = GRADIENTS.take(W_dec_MN, W_dec_MN.shape)
        torch.mm(d_pre_BM.T, seen_BN, out=d_W_enc_MN)
        torch.mm(features_BM.T, d_x_hat, out=d_W_dec_MN)
        d_b_dec_N = d_x_hat.sum(0)
        if ctx.centred:
            d_b_dec_N -= W_enc_NM @ totals.d_pre_M
        return (
            *(None,) * 4,
            d_W_enc_MN.T,
            totals.d_gate_M,
            totals.d_magnitude_M,
            totals.d_r_mag_M,
            d_W_dec_MN,
            d_b_dec_N,
        )


def or_zero(gradient: Tensor | None) -> Tensor | float:
    """An output that nobody differentiated has gradient 0."""
    return 0.0 if gradient is None else gradient
