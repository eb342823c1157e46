"""The JumpReLU twin of a gated SAE, as SAELens' architecture `jumprelu`.

    gate       π + b_gate > 0
    magnitude  h = exp(r_mag) π + b_mag        with π = W_encᵀ (x − b_dec)
    so         f = h where h > θ and h > 0, with θ = b_mag − exp(r_mag) b_gate

The ReLU decides where θ < 0; there the threshold is 0. W_enc exp(r_mag) and the biases are computed
in float64 and rounded once. θ is derived from the b_enc that was rounded: then the rounding of b_enc
cancels in h − θ, and the gate moves by no more than that of θ and W_enc.
"""

from __future__ import annotations

from pathlib import Path

from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from gated_plugin.convert import saelens
from gated_plugin.convert.matrices import rounded, scaled
from gated_plugin.convert.weights import Parts, Source
from gated_plugin.dictionaries import WEIGHTS
from gated_plugin.tensor_files import whole, write_tensors


def write(source: Source, norms: Tensor, folder: Path) -> None:
    """Write the twin of `source`, its decoder norms folded in.

    Args:
        norms: factors of `folding` [d_sae].
    """
    weights = source.weights
    slope = weights.r_mag.exp() * norms
    b_enc = rounded(weights.b_mag * norms, "F32", "b_enc")
    theta = threshold(b_enc.double(), slope, weights.b_gate)
    write_tensors(
        folder / WEIGHTS,
        {
            "W_enc": scaled(weights.W_enc, "F32", columns=slope),
            "W_dec": scaled(weights.W_dec, "F32", rows=1 / norms),
            "b_dec": whole(rounded(weights.b_dec, "F32", "b_dec")),
            "b_enc": whole(b_enc),
            "threshold": whole(rounded(theta, "F32", "threshold")),
        },
    )
    saelens.write_cfg(source, folder, JumpReLUSAEConfig)


def threshold(b_mag: Tensor, slope: Tensor, b_gate: Tensor) -> Tensor:
    """θ [d_sae], with `slope` exp(r_mag); 0 where the ReLU decides."""
    return (b_mag - slope * b_gate).clamp_min(0)


def parts(folder: Path) -> Parts:
    """A twin in SAELens' class."""
    return saelens.result_parts(folder, JumpReLUSAE, JumpReLUSAEConfig)
