"""Inference-time optimisation: the codes that a dictionary allows, found without its encoder.

Gradient pursuit (Blumensath & Davies 2008) with non-negative coefficients, as arXiv 2404.16014,
appendix A, compares dictionaries. With atoms u = w/‖w‖, residual r = x − b_dec − Σ f u, and the
active set A, every iteration does

    A ← A ∪ {argmax over j ∉ A of r·u_j}
    d_j = r·u_j for j ∈ A, 0 where f_j = 0 and r·u_j ≤ 0         the direction
    p = max(f + ‖d‖²/‖Σ d u‖² d, 0) − f                          the exact step along it, clipped at 0
    f ← f + t p,   t = min(1, r·Σ p u / ‖Σ p u‖²)                shorter where the clip overshot

so that f stays non-negative and ‖r‖ never grows. Where nothing is clipped t = 1. An atom that is in
A already is not picked again: it takes part in every step anyway.

Shapes: B rows, N d_in, M d_sae, L atoms per row (l0).
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch import Tensor
from torch.nn.functional import embedding_bag

from gated_plugin.engine.codes import SparseCodes, row_offsets
from gated_plugin.errors import GatedError

HELD_CORRELATIONS, FEWEST_ROWS = 1 << 21, 64
"""Elements of the product r Uᵀ that are in memory at once, 8 MB in float32: a quarter less time than
blocks of 32 MB or 0.5 MB at 256 × 2048. With fewer rows the product is bound by reading W_dec."""


@torch.no_grad()
def pursue(x: Tensor, W_dec_MN: Tensor, b_dec_N: Tensor, *, l0: int) -> SparseCodes:
    """Codes of activations [..., N] by at most `l0` atoms each, in the units of `W_dec`'s rows.

    A row has fewer where no further atom correlates with its residual by more than rounding, or
    where a coefficient was clipped to 0. An atom of norm 0 is never used.

    Raises:
        GatedError: `l0` is below 1, widths differ, or x is not finite.
    """
    _require_sound(x, W_dec_MN, l0)
    dtype = torch.promote_types(torch.promote_types(x.dtype, W_dec_MN.dtype), torch.float32)
    W_MN = W_dec_MN.to(dtype).contiguous()
    scale_M = W_MN.norm(dim=1).reciprocal().nan_to_num(posinf=0.0)
    target_BN = x.reshape(-1, x.shape[-1]).to(dtype) - b_dec_N.to(dtype)
    parts = [
        _pursue_block(rows, W_MN, scale_M, min(l0, len(W_MN)))
        for rows in target_BN.split(max(FEWEST_ROWS, HELD_CORRELATIONS // len(W_MN)))
    ]
    values_BL, atoms_BL = (torch.cat(part) for part in zip(*parts, strict=True))
    return _codes(values_BL, atoms_BL, torch.Size((*x.shape[:-1], len(W_MN))))


class PursuitSAE:
    """A dictionary that is encoded by pursuit: what `evaluation.measure_all` takes for an SAE.

    It has no encoder, and so no figure of one.
    """

    def __init__(self, sae: SAE[Any], l0: int) -> None:
        self.sae, self.l0 = sae, l0
        self.cfg = sae.cfg

    @property
    def W_dec(self) -> Tensor:
        """The dictionary [d_sae, d_in]."""
        return self.sae.W_dec

    @property
    def device(self) -> torch.device:
        """Where the dictionary is, and activations are to be."""
        return self.sae.W_dec.device

    def to(self, device: torch.device | str) -> PursuitSAE:
        """Move the dictionary."""
        self.sae.to(device)
        return self

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Take and give heads concatenated, as an SAE does after this."""
        self.sae.turn_off_forward_pass_hook_z_reshaping()

    def encode(self, x: Tensor) -> Tensor:
        """Features [..., d_sae] of activations [..., d_in]; at most `l0` of each row are not 0."""
        sae = self.sae
        seen = sae.process_sae_in(x)
        # The encoder may see x − b_dec already.
        b_dec = torch.zeros_like(sae.b_dec) if sae.cfg.apply_b_dec_to_input else sae.b_dec
        return pursue(seen, sae.W_dec, b_dec, l0=self.l0).to_dense().to(sae.dtype)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The SAE's own reconstructions [..., d_in]."""
        return self.sae.decode(feature_acts)


def _require_sound(x: Tensor, W_dec_MN: Tensor, l0: int) -> None:
    if l0 < 1:
        raise GatedError(f"l0 is {l0}, but a pursuit needs at least one atom; give 1 or more.")
    if x.shape[-1] != W_dec_MN.shape[1]:
        raise GatedError(
            f"The activations have {x.shape[-1]} dimensions, but the dictionary's atoms have "
            f"{W_dec_MN.shape[1]}; check that both are of one hook point."
        )
    if not x.isfinite().all():
        raise GatedError(
            "The activations hold NaN or infinity, to which no dictionary comes near; mend the "
            "model or the data."
        )


def _pursue_block(
    residual_BN: Tensor, W_MN: Tensor, scale_M: Tensor, l0: int
) -> tuple[Tensor, Tensor]:
    """Coefficients [B, L] ≥ 0 of the rows of W, and which rows they are [B, L]."""

    def combine(weights_BK: Tensor, atoms_BK: Tensor) -> Tensor:
        """Σ weight · u[atom]: [B, N]."""
        weights = weights_BK * scale_M[atoms_BK]
        return embedding_bag(atoms_BK, W_MN, per_sample_weights=weights, mode="sum")

    atoms_BL = torch.zeros(len(residual_BN), l0, dtype=torch.long, device=W_MN.device)
    f_BL = W_MN.new_zeros(atoms_BL.shape)
    noise_B1 = _rounding(W_MN) * residual_BN.norm(dim=1, keepdim=True)
    for held in range(l0):
        atoms_BK, f_BK = atoms_BL[:, : held + 1], f_BL[:, : held + 1]
        correlation_BM = (residual_BN @ W_MN.T).mul_(scale_M)
        d_BK = torch.empty_like(f_BK)
        d_BK[:, :held] = correlation_BM.gather(1, atoms_BK[:, :held])
        correlation_BM.scatter_(1, atoms_BK[:, :held], -torch.inf)
        d_BK[:, held], atoms_BK[:, held] = correlation_BM.max(dim=1)
        d_BK *= (f_BK > 0) | (d_BK > noise_B1)
        move_BN = combine(d_BK, atoms_BK)
        exact_B1 = _ratio(d_BK.square(), move_BN.square())
        move_BN *= exact_B1
        stepped_BK = f_BK + exact_B1 * d_BK
        clipped = (stepped_BK < 0).any(1)
        p_BK = stepped_BK.clamp_(min=0) - f_BK
        if clipped.any():
            short_BN = combine(p_BK[clipped], atoms_BK[clipped])
            t_B1 = _ratio(residual_BN[clipped] * short_BN, short_BN.square()).clamp(0, 1)
            p_BK[clipped] *= t_B1
            move_BN[clipped] = t_B1 * short_BN
        f_BK += p_BK
        residual_BN = residual_BN - move_BN
    return f_BL * scale_M[atoms_BL], atoms_BL


def _rounding(W_MN: Tensor) -> float:
    """Below this share of ‖x‖ a correlation is rounding: N·2⁻²⁴ in float32, as for any product."""
    return W_MN.shape[1] * torch.finfo(W_MN.dtype).eps / 2


def _ratio(numerator_BK: Tensor, denominator_BN: Tensor) -> Tensor:
    """Σ numerator / Σ denominator [B, 1]; 0 where there is nothing to move."""
    return (numerator_BK.sum(1, keepdim=True) / denominator_BN.sum(1, keepdim=True)).nan_to_num(
        nan=0.0, posinf=0.0
    )


def _codes(values_BL: Tensor, atoms_BL: Tensor, shape: torch.Size) -> SparseCodes:
    atoms_BL, order = atoms_BL.sort(dim=1)
    values_BL = values_BL.gather(1, order)
    rows, places = (values_BL > 0).nonzero(as_tuple=True)
    return SparseCodes(
        offsets=row_offsets(rows, len(values_BL)),
        features=atoms_BL[rows, places],
        values=values_BL[rows, places],
        shape=shape,
    )
