"""How far a conversion may be from its source by rounding alone: a bound, not a tolerance.

Each parameter of a result is a float64 number rounded once, by at most u of itself. With
π = W_encᵀ c, c = x − b_dec, s the factor of the decoder norm, k = s exp(r_mag), by Cauchy-Schwarz

    |feature − feature'|  ≤  k ‖w‖ ((u + |r_mag| v) ‖c‖ + z ‖b_dec‖)  +  v (s |b_mag| + k |b_gate|)
    ‖x̂ − x̂'‖              ≤  u Σ f ‖w_dec‖ + z ‖b_dec‖

where u is that of the matrices, v that of the vectors, and z is u, or 0 where b_dec is copied
exactly. The first line bounds too what a firing is decided by, s · min(exp(r_mag) π_gate, π_mag): a
feature whose decision is nearer to 0 may flip. A smallest number of its type is added, for below
the normal ones rounding is no longer relative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gated_plugin.convert.weights import GatedWeights, Source
from gated_plugin.tensor_files import TORCH_NAMES

ROUNDOFF = {"F32": 2.0**-24, "BF16": 2.0**-8}
"""Half the distance of 1 to the next number of the type."""

SLACK = 1.001
"""Second-order terms, the float64 of the evaluation itself, and float64 → float32 → bfloat16,
which rounds twice: together below u/1000."""

RESOLUTION = 1e-3
"""Share of a gate's range, ‖w‖‖c‖, below which what the biases round away may flip a firing. Where
r_mag is so low that exp(r_mag) π vanishes beside b_mag, the bound allows every flip, but float32 does
not hold the gate: those flips are not called rounding."""


@dataclass(frozen=True)
class Band:
    """What rounding allows on some activations and features, each [rows, features]."""

    features: Tensor
    firings: Tensor


@dataclass(frozen=True)
class Rounding:
    """Of one conversion."""

    dtype: str
    """Of the matrices and of b_dec, as safetensors names it."""
    b_dec: float
    """z ‖b_dec‖"""
    b_dec_in: float
    """The same, where b_dec is subtracted from the input."""

    @classmethod
    def of(cls, source: Source, dtype: str) -> Rounding:
        """Of a conversion of `source` to matrices of `dtype`."""
        b_dec = source.weights.b_dec
        exact = torch.equal(b_dec, b_dec.to(getattr(torch, TORCH_NAMES[dtype])).double())
        z = 0.0 if exact else ROUNDOFF[dtype] * b_dec.norm().item()
        return cls(dtype, z, z if source.cfg.apply_b_dec_to_input else 0.0)

    @property
    def smallest(self) -> float:
        """The smallest number above 0 of the type of the matrices."""
        info = torch.finfo(getattr(torch, TORCH_NAMES[self.dtype]))
        return info.smallest_normal * info.eps

    def band(
        self, weights: GatedWeights, chosen: slice, W_enc: Tensor, centred: Tensor, norms: Tensor
    ) -> Band:
        """On activations [rows, d_in] less b_dec, for the features `chosen`.

        Args:
            W_enc: of these features [d_in, features].
            norms: factors of `folding`, of these features.
        """
        u, v = ROUNDOFF[self.dtype], ROUNDOFF["F32"]
        r_mag, slope = weights.r_mag[chosen], weights.r_mag[chosen].exp() * norms
        lengths = centred.norm(dim=1, keepdim=True)
        reach = slope * W_enc.norm(dim=0)
        products = reach * ((u + r_mag.abs() * v) * lengths + self.b_dec_in)
        products = products + self.smallest * (len(W_enc) ** 0.5 * lengths + 1)
        biases = v * (norms * weights.b_mag[chosen].abs() + slope * weights.b_gate[chosen].abs())
        resolved = torch.minimum(biases, RESOLUTION * reach * lengths)
        return Band(SLACK * (products + biases), SLACK * (products + resolved))

    def reconstructions(self, written: Tensor) -> Tensor:
        """On reconstructions [rows] whose features write `written` = Σ f ‖w_dec‖ [rows]."""
        return SLACK * (ROUNDOFF[self.dtype] * written + self.b_dec + self.smallest)
