"""What the weights alone say of each feature."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gated_plugin.convert.jumprelu import threshold

BLOCK = 1 << 12
"""Features at once."""


@torch.no_grad()
def weight_figures(sae: Any) -> dict[str, Tensor]:
    """What there is of these, each float32 [d_sae] on the CPU.

    `theta`: a feature of that magnitude or less is cut to 0 (arXiv 2404.16014, appendix E); gated
    with tied encoders, and JumpReLU, have it.
    `encoder_decoder_cosine`: cos(W_enc[:, m], W_dec[m]), 0 where a vector is 0; an SAE with an
    encoder has it.
    """
    found = {"theta": _theta(sae), "encoder_decoder_cosine": _cosine(sae)}
    return {name: figure.float().cpu() for name, figure in found.items() if figure is not None}


def _theta(sae: Any) -> Tensor | None:
    if isinstance(sae, JumpReLUSAE):
        return sae.threshold
    if isinstance(sae, GatedSAE):
        r_mag, b_mag, b_gate = (getattr(sae, n).double() for n in ("r_mag", "b_mag", "b_gate"))
        return threshold(b_mag, r_mag.exp(), b_gate)
    return None


def _cosine(sae: Any) -> Tensor | None:
    W_enc = getattr(sae, "W_enc", None)
    if W_enc is None:
        return None
    # In blocks: torch's own holds three copies of both matrices.
    blocks = zip(W_enc.split(BLOCK, dim=1), sae.W_dec.split(BLOCK), strict=True)
    return torch.cat([cosine_similarity(enc.T.float(), dec.float(), dim=1) for enc, dec in blocks])
