"""The training step on the support alone: forward and backward of the Gated SAE's loss.

    L = ‖x − x̂‖² + λ Σ ReLU(π_gate) + ‖x − x̂_frozen(ReLU(π_gate))‖²        mean over rows

ReLU(π_gate) and f share one support S. With e = x̂ − x and e' = x̂_frozen − x, on S:

    ∂f = 2/B e·w_dec        ∂π_gate = 2/B e'·w_dec + λ/B
    ∂r_mag = Σ ∂f exp(r_mag) π       ∂b_mag = Σ ∂f       ∂b_gate = Σ ∂π_gate       (where f > 0: ∂f)
    ∂π = exp(r_mag) ∂f + ∂π_gate     ∂w_enc = Σ ∂π x     ∂w_dec = Σ 2/B f e
    ∂b_dec = Σ 2/B e − W_enc Σ ∂π    the second where the encoder sees x − b_dec

arXiv 2404.16014, section 3.2.2. Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gated_plugin.engine import reference
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.dense import dense_step, or_zero
from gated_plugin.engine.dispatch import Choice, choose, densest_step, find_support
from gated_plugin.engine.features import StepFeatures
from gated_plugin.engine.first_order import first_order
from gated_plugin.engine.kept_memory import ACTIVATIONS, GRADIENTS
from gated_plugin.engine.support import EncoderWeights, Support
from gated_plugin.loss import GatedLoss


class GatedStep(NamedTuple):
    """A forward pass, ready for `backward`."""

    losses: GatedLoss
    x_hat_BN: Tensor
    features: Tensor
    """[B, M], differentiable; held as sparse codes where a sparse path served, and only counted
    where a dense one did by tiles."""

    choice: Choice


def gated_step(
    x_BN: Tensor,
    weights: EncoderWeights,
    W_dec_MN: Tensor,
    b_dec_N: Tensor,
    l1: float,
    *,
    centred: bool = True,
    impl: str | None = None,
) -> GatedStep:
    """One forward pass of a batch, differentiable once in every weight (not in x).

    Args:
        l1: λ, for a squared error that is summed over N.
        centred: whether the encoder sees x − b_dec, or x itself.
        impl: "numba", "triton", "torch", "dense" or "reference"; None chooses.
    """
    seen_BN = x_BN - b_dec_N.detach() if centred else x_BN
    choice = choose(seen_BN, weights, impl, densest_step(weights.W_enc_NM))
    if not len(x_BN):
        choice = choice._replace(impl="reference")
    found = find_support(seen_BN, weights, choice)
    if found is not None:
        operations, support = found
        ACTIVATIONS.release(W_dec_MN)
        inputs = (*weights, W_dec_MN, b_dec_N)
        *terms, x_hat, values = _SparseStep.apply(
            operations, support, x_BN, seen_BN, l1, centred, *inputs
        )
        on_support = StepFeatures(support.codes.with_values(values))
        return GatedStep(GatedLoss(*terms), x_hat, on_support, choice)
    if choice.impl == "reference":
        seen_BN = x_BN - b_dec_N if centred else x_BN
        losses, x_hat, features = reference.step(seen_BN, x_BN, weights, W_dec_MN, b_dec_N, l1)
        return GatedStep(losses, x_hat, features, choice)
    made = dense_step(x_BN, seen_BN, weights, W_dec_MN, b_dec_N, l1, centred=centred)
    return GatedStep(*made, Choice("dense", False, choice.density))


class _SparseStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        operations: ModuleType,
        support: Support,
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
        terms = operations.step(support, W_dec_MN, b_dec_N, x_BN)
        B, codes = len(x_BN), support.codes
        ctx.operations, ctx.l1, ctx.centred, ctx.shape = operations, l1, centred, codes.shape
        ctx.save_for_backward(
            seen_BN, W_enc_NM, r_mag_M, W_dec_MN, codes.offsets, codes.features, codes.values,
            support.pre_K, terms.error_BN, terms.along_error_K, terms.along_frozen_error_K,
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        return (
            terms.error_BN.square().sum() / B,
            l1 / B * support.gate_K.sum(),
            terms.frozen_error_BN.square().sum() / B,
            terms.x_hat_BN,
            support.codes.values.clone(),
        )

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        d_reconstruction: Tensor | None,
        d_sparsity: Tensor | None,
        d_auxiliary: Tensor | None,
        d_x_hat_BN: Tensor | None,
        d_values_K: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        seen_BN, W_enc_NM, r_mag_M, W_dec_MN, offsets, features, values, pre_K, *terms = (
            ctx.saved_tensors
        )
        error_BN, along_error_K, along_frozen_error_K = terms
        operations, B, W_enc_MN = ctx.operations, len(seen_BN), W_enc_NM.T
        codes = SparseCodes(offsets=offsets, features=features, values=values, shape=ctx.shape)

        d_x_hat = 2 / B * or_zero(d_reconstruction) * error_BN
        d_f_K = 2 / B * or_zero(d_reconstruction) * along_error_K
        if d_x_hat_BN is not None:
            d_x_hat = d_x_hat + d_x_hat_BN
            d_f_K = d_f_K + operations.sample(codes, d_x_hat_BN.contiguous(), W_dec_MN)
        if d_values_K is not None:
            d_f_K = d_f_K + d_values_K
        d_magnitude_K = d_f_K * (codes.values > 0)
        d_gate_K = 2 / B * or_zero(d_auxiliary) * along_frozen_error_K
        d_gate_K += ctx.l1 / B * or_zero(d_sparsity)
        d_scaled_K = d_magnitude_K * r_mag_M.exp()[codes.features]
        d_pre_K = d_scaled_K + d_gate_K

        by = operations.sort_by_feature(codes)
        d_W_enc_MN = operations.sum_by_feature(
            by, d_pre_K, seen_BN, GRADIENTS.take(W_enc_NM, W_enc_MN.shape)
        )
        d_W_dec_MN = operations.sum_by_feature(
            by, codes.values, d_x_hat, GRADIENTS.take(W_dec_MN, W_dec_MN.shape)
        )
        d_b_dec_N = d_x_hat.sum(0)
        if ctx.centred:
            d_pre_M = operations.total_by_feature(by, d_pre_K)
            d_b_dec_N -= W_enc_NM @ d_pre_M.to(W_enc_NM.dtype)
        return (
            *(None,) * 6,
            d_W_enc_MN.T,
            operations.total_by_feature(by, d_gate_K),
            operations.total_by_feature(by, d_magnitude_K),
            operations.total_by_feature(by, d_scaled_K * pre_K),
            d_W_dec_MN,
            d_b_dec_N,
        )
