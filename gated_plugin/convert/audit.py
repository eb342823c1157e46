"""What a conversion changed, measured in float64 on activations, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gated_plugin.convert.matrices import slices
from gated_plugin.convert.rounding import Rounding
from gated_plugin.convert.weights import Part, Parts, Source

SURVIVES = 0.99
"""Share of its firings that a feature must keep not to be counted as changed."""


@dataclass(frozen=True)
class Audit:
    """Differences between a source, its decoder norms folded, and a result."""

    figures: dict[str, Any]
    """For conversion.json."""
    fired: Tensor
    """Activations on which each feature of the source fires [d_sae]."""
    survived: Tensor
    """Those of them on which it fires in the result too [d_sae]."""
    flips_beyond: Tensor
    """Firings of each feature that differ although their decision is further from 0 than rounding
    explains [d_sae]."""
    excess: float
    """Largest difference of a feature or a reconstruction over what rounding explains."""

    @property
    def is_rounding(self) -> bool:
        """Whether nothing but rounding was found; NaN is none."""
        return self.excess <= 1 and not self.flips_beyond.any()


def audit(source: Source, result: Parts, norms: Tensor, x: Tensor, dtype: str) -> Audit:
    """Compare on activations `x` [rows, d_in], a part of the features at a time.

    Args:
        result: the parts of what was written.
        norms: factors of `folding` [d_sae]; the result's features are the source's times these.
        dtype: of the result's matrices, as safetensors names it.
    """
    totals = _Totals(source, norms, x.double(), Rounding.of(source, dtype))
    with torch.no_grad():
        for chosen in slices(source.cfg.d_sae, source.cfg.d_in):
            totals.update(chosen, source.parts(chosen), result(chosen))
    return totals.audit()


@dataclass
class _Totals:
    """What is collected over the parts."""

    source: Source
    norms: Tensor
    x: Tensor
    rounding: Rounding
    fired: list[Tensor] = field(default_factory=list)
    survived: list[Tensor] = field(default_factory=list)
    flips_beyond: list[Tensor] = field(default_factory=list)
    result_norms: list[Tensor] = field(default_factory=list)
    largest: float = 0.0
    apart: float = 0.0
    apart_without_flips: float = 0.0
    excess: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    flips: int = 0
    widest: float = 0.0
    widest_in_bands: float = 0.0

    def __post_init__(self) -> None:
        weights, rows = self.source.weights, len(self.x)
        subtracted = weights.b_dec * self.source.cfg.apply_b_dec_to_input
        self.centred = self.x - subtracted
        # x̂ of the source, of the result, and of the result for the features of the source.
        self.x_hat = weights.b_dec.repeat(rows, 1)
        self.result_x_hat, self.decoded = (torch.zeros_like(self.x_hat) for _ in range(2))
        self.written = torch.zeros(rows, dtype=torch.float64)
        self.result_b_dec = torch.zeros(())

    def update(self, chosen: slice, ours: Part, theirs: Part) -> None:
        """Take in the features `chosen`."""
        norms = self.norms[chosen]
        raw, found = ours.encode(self.x), theirs.encode(self.x)
        self._compare(chosen, raw * norms, found)
        self.x_hat += ours.decode(raw) - ours.b_dec
        self.result_x_hat += theirs.decode(found) - theirs.b_dec
        self.decoded += theirs.decode(raw * norms) - theirs.b_dec
        self.written += raw @ ours.W_dec.norm(dim=1)
        self.result_b_dec = theirs.b_dec
        self.result_norms.append(theirs.W_dec.norm(dim=1))

    def _compare(self, chosen: slice, wanted: Tensor, found: Tensor) -> None:
        weights, norms = self.source.weights, self.norms[chosen]
        W_enc = weights.W_enc.part(columns=chosen)
        band = self.rounding.band(weights, chosen, W_enc, self.centred, norms)
        fires, flips = wanted > 0, (wanted > 0) != (found > 0)
        difference = (wanted - found).abs()
        self.fired.append(fires.sum(0))
        self.survived.append((fires & ~flips).sum(0))
        self.largest = max(self.largest, wanted.max().item())
        self.apart = max(self.apart, difference.max().item())
        difference = difference.masked_fill(flips, 0)
        self.apart_without_flips = max(self.apart_without_flips, difference.max().item())
        self._exceed(difference, band.features)
        self._decide(chosen, flips, self.centred @ W_enc, band.firings)

    def _decide(self, chosen: slice, flips: Tensor, pi: Tensor, allowed: Tensor) -> None:
        """How far from 0 the firings that flipped were decided, s · min(exp(r) π_gate, π_mag)."""
        weights, norms = self.source.weights, self.norms[chosen]
        slope = weights.r_mag[chosen].exp()
        gate, magnitude = slope * (pi + weights.b_gate[chosen]), slope * pi + weights.b_mag[chosen]
        margin = (norms * torch.minimum(gate, magnitude)).abs() * flips
        in_bands = torch.where(flips, margin / allowed, 0.0)
        self.flips += int(flips.sum())
        self.flips_beyond.append((~(in_bands <= 1)).sum(0))
        self.widest = max(self.widest, margin.max().item())
        self.widest_in_bands = max(self.widest_in_bands, in_bands.max().item())

    def _exceed(self, difference: Tensor, allowed: Tensor) -> None:
        """0/0 is none; a NaN stays one, which Python's max() would drop."""
        over = torch.where(difference == 0, 0.0, difference / allowed)
        self.excess = torch.maximum(self.excess, over.max())

    def audit(self) -> Audit:
        """What it all amounts to."""
        self.result_x_hat += self.result_b_dec
        self.decoded += self.result_b_dec
        off = (self.decoded - self.x_hat).norm(dim=1)
        self._exceed(off, self.rounding.reconstructions(self.written))
        fired, survived = torch.cat(self.fired), torch.cat(self.survived)
        beyond = torch.cat(self.flips_beyond)
        figures = {
            "features": {
                "max": self.apart,
                "max_without_flips": self.apart_without_flips,
                "relative": _over(self.apart, self.largest),
            },
            "reconstructions": self._reconstructions(),
            "largest_over_rounding_bound": self.excess.item(),
            "firings": int(fired.sum()),
            "flips": {
                "count": self.flips,
                "beyond_rounding": int(beyond.sum()),
                "widest_margin": self.widest,
                "widest_margin_over_band": self.widest_in_bands,
            },
            "survival": _survival(fired, survived),
            "decoder_norms": self._decoder_norms(),
        }
        return Audit(figures, fired, survived, beyond, self.excess.item())

    def _reconstructions(self) -> dict[str, float]:
        difference = self.result_x_hat - self.x_hat
        return {
            "max": difference.abs().max().item(),
            "relative": _over(difference.norm().item(), self.x_hat.norm().item()),
        }

    def _decoder_norms(self) -> dict[str, list[float]]:
        found = torch.cat(self.result_norms)
        folded = self.norms
        return {
            "folded_by": [folded.min().item(), folded.max().item()],
            "result": [found.min().item(), found.max().item()],
        }


def _survival(fired: Tensor, survived: Tensor) -> dict[str, Any]:
    shares = (survived / fired)[fired > 0]
    return {
        "features_that_fire": len(shares),
        "minimum": shares.min().item() if len(shares) else None,
        "mean": shares.mean().item() if len(shares) else None,
        f"below_{SURVIVES}": int((shares < SURVIVES).sum()),
    }


def _over(difference: float, largest: float) -> float:
    return difference / largest if largest else difference
