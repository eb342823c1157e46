"""Random batches and weights whose gates and magnitudes all lie clear of their thresholds.

On them every implementation must find the support that float64 finds.
Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gated_plugin.engine.support import EncoderWeights

SHAPES = [
    (1, 1, 2),
    (1, 7, 4100),
    (3, 7, 123),
    (3, 123, 2050),
    (33, 1, 2050),
    (33, 252, 507),
    (252, 123, 123),
]
SHARES = {"none open": 0.0, "few open": 0.03, "many open": 0.3, "all open": 1.0}
IMPLEMENTATIONS = ("numba", "torch", "dense", "reference")
SPARSE = ("numba", "torch")
L1 = 0.7


@dataclass(frozen=True)
class Problem:
    """What the engine's operations are given."""

    x_BN: Tensor
    weights: EncoderWeights
    W_dec_MN: Tensor
    b_dec_N: Tensor
    centred: bool

    @property
    def seen_BN(self) -> Tensor:
        """What the encoder sees."""
        return self.x_BN - self.b_dec_N if self.centred else self.x_BN

    def to(self, kind: torch.dtype | str) -> Problem:
        """In another type, or on another device."""
        weights = EncoderWeights(*(weight.to(kind) for weight in self.weights))
        W_dec, b_dec = self.W_dec_MN.to(kind), self.b_dec_N.to(kind)
        return Problem(self.x_BN.to(kind), weights, W_dec, b_dec, self.centred)

    def with_half_weights(self) -> Problem:
        """Matrices and activations in bfloat16, the gate's vectors as they are."""
        half = self.to(torch.bfloat16)
        weights = self.weights._replace(W_enc_NM=half.weights.W_enc_NM)
        return Problem(half.x_BN, weights, half.W_dec_MN, half.b_dec_N, self.centred)

    def open_gates(self) -> Tensor:
        """[B, M], by float64."""
        exact = self.to(torch.float64)
        return exact.seen_BN @ exact.weights.W_enc_NM + exact.weights.b_gate_M > 0


@cache
def problem(
    B: int,
    N: int,
    M: int,
    share: float,
    *,
    centred: bool = False,
    rounded: bool = False,
    seed: int = 0,
) -> Problem:
    """A problem of which about `share` of the gates are open; a quarter of the rows are small.

    Args:
        rounded: matrices and activations are such that bfloat16 can hold them.
    """
    torch.manual_seed(seed)
    x_BN, W_MN = torch.randn(B, N), torch.randn(M, N) / N**0.5
    x_BN[torch.randperm(B)[: B // 4]] *= 0.05
    b_dec_N, r_mag_M = 0.3 * torch.randn(N), 0.3 * torch.randn(M)
    W_dec_MN = torch.nn.functional.normalize(torch.randn(M, N))
    if rounded:
        matrices = (x_BN, W_MN, b_dec_N, W_dec_MN)
        x_BN, W_MN, b_dec_N, W_dec_MN = (matrix.bfloat16().float() for matrix in matrices)
    seen_BN = x_BN.double() - b_dec_N.double() if centred else x_BN.double()
    pre_BM = seen_BN @ W_MN.double().T
    opened_M = torch.binomial(torch.full((M,), float(B)), torch.full((M,), share))
    positive_M = torch.where(torch.rand(M) < 0.5, torch.full((M,), float(B)), 0.7 * opened_M)
    gate_at_M = _level_below(pre_BM, opened_M, slack=min(B // 3, 3) if 0 < share < 1 else 0)
    magnitude_at_M = _level_below(pre_BM, positive_M, slack=min(B // 3, 3))
    b_gate_M, b_mag_M = -gate_at_M.float(), -(r_mag_M.double().exp() * magnitude_at_M).float()
    weights = EncoderWeights(W_MN.T, b_gate_M, b_mag_M, r_mag_M)
    made = Problem(x_BN, weights, W_dec_MN, b_dec_N, centred)
    _check_clear(made.to(torch.float64))
    return made


def _level_below(pre_BM: Tensor, counts_M: Tensor, slack: int) -> Tensor:
    """Per feature, the middle of the widest gap that `counts ± slack` of the rows lie above."""
    beyond = 0.1 * pre_BM.abs().max()
    ordered = pre_BM.sort(0, descending=True).values
    levels = torch.cat([ordered[:1] + beyond, ordered, ordered[-1:] - beyond])
    gaps = levels[:-1] - levels[1:]
    away = (torch.arange(len(gaps))[:, None] - counts_M.round()).abs() > slack
    above = gaps.masked_fill(away, -1).argmax(0, keepdim=True)
    return (levels.gather(0, above) + levels.gather(0, above + 1))[0] / 2


def _check_clear(exact: Problem) -> None:
    W, b_gate, b_mag, r_mag = exact.weights
    pre_BM, N = exact.seen_BN @ W, len(W)
    band_BM = 4 * (N + 2) * 2.0**-24 * (exact.seen_BN.norm(dim=1)[:, None] * W.norm(dim=0) + 1e-6)
    assert ((pre_BM + b_gate).abs() > band_BM).all()
    assert ((pre_BM + b_mag / r_mag.exp()).abs() > band_BM).all()


def relative_error(found: Tensor | None, true: Tensor | None) -> float:
    """‖found − true‖ / ‖true‖; None is a gradient of 0, beside which only 0 is right."""
    if found is None or true is None:
        rest = found if true is None else true
        return 0.0 if rest is None or not rest.any() else float("inf")
    error, size = (found.double() - true.double()).norm().item(), true.double().norm().item()
    return error / size if size else float("inf") * error if error else 0.0
