"""The training step of the ablations on the support alone: the engine's doors, put together.

    ‖x − x̂‖² + λ Σ ReLU(π_gate) (‖w_dec‖) + ‖x − x̂(ReLU(π_gate))‖²

What `step.py` fuses by hand is left to autograd here: f and ReLU(π_gate) as values on one support,
each with a decode of its own. Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from gated_plugin.engine.decode import decode
from gated_plugin.engine.dispatch import choose, densest_step, find_support
from gated_plugin.engine.encode import on_support
from gated_plugin.engine.features import StepFeatures
from gated_plugin.engine.step import GatedStep
from gated_plugin.engine.support import EncoderWeights, Support
from gated_plugin.loss import GatedLoss, squared_error


def ablated_step(
    x_BN: Tensor,
    gate: EncoderWeights,
    magnitude: EncoderWeights | None,
    W_dec_MN: Tensor,
    b_dec_N: Tensor,
    l1: float,
    *,
    centred: bool = True,
    live: bool = False,
    weighted: bool = False,
) -> GatedStep | None:
    """One forward pass of a batch, differentiable once in every weight (not in x).

    Args:
        gate: the encoder, or the gate's where they are untied.
        magnitude: the other encoder, where they are.
        l1: λ, for a squared error that is summed over N.
        centred: whether the encoder sees x − b_dec, or x itself.
        live: the gradients of the gate's two terms reach the decoder.
        weighted: the penalty is weighted by the norms of the decoder's rows.

    Returns:
        None where dense products are the cheaper way.
    """
    seen_BN = x_BN - b_dec_N if centred else x_BN
    choice = choose(seen_BN.detach(), gate, None, densest_step(gate.W_enc_NM))
    found = find_support(seen_BN, gate, choice) if len(x_BN) else None
    if found is None:
        return None
    operations, support = found
    codes = support.codes
    if magnitude is None:
        f_K = on_support(operations, codes, support.pre_K, seen_BN, gate)
    else:
        f_K = _magnitudes(operations, support, seen_BN, magnitude)
    plain = EncoderWeights(
        gate.W_enc_NM, gate.b_gate_M, gate.b_gate_M, torch.zeros_like(gate.b_gate_M)
    )
    open_gates = codes.with_values(support.gate_K)
    gate_K = on_support(operations, open_gates, support.pre_K, seen_BN, plain)

    x_hat_BN = decode(codes.with_values(f_K), W_dec_MN, b_dec_N)
    W_gate_MN, b_gate_N = (w if live else w.detach() for w in (W_dec_MN, b_dec_N))
    norms_K = W_gate_MN.norm(dim=1)[codes.features] if weighted else 1
    losses = GatedLoss(
        reconstruction=squared_error(x_BN, x_hat_BN),
        sparsity=l1 / len(x_BN) * (gate_K * norms_K).sum(),
        auxiliary=squared_error(x_BN, decode(codes.with_values(gate_K), W_gate_MN, b_gate_N)),
    )
    return GatedStep(losses, x_hat_BN, StepFeatures(codes.with_values(f_K)), choice)


def _magnitudes(
    operations: ModuleType, support: Support, seen_BN: Tensor, weights: EncoderWeights
) -> Tensor:
    """ReLU(exp(r_mag) π + b_mag) on the gate's support, π by the magnitude's own encoder: [K]."""
    codes = support.codes
    with torch.no_grad():
        pre_K = operations.sample(codes, seen_BN, weights.W_enc_NM.T)
        scaled_K = weights.r_mag_M.exp()[codes.features] * pre_K
        f_K = torch.relu(scaled_K + weights.b_mag_M[codes.features])
    return on_support(operations, codes.with_values(f_K), pre_K, seen_BN, weights)
