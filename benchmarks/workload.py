"""What is measured: a batch, and weights as training leaves them, of a given shape and L0.

Features fire with power-law frequencies, strengths 1 + |normal|; the batch is scaled to
E‖x‖² = N, as SAELens scales activations. Decoder rows have norm 1, W_enc = W_decᵀ, and the gate's
threshold opens L0 gates a row on average: b_gate = −threshold, b_mag = −threshold / 2. Above half
of the gates the threshold is negative, and gates that are open with f = 0 count too.

Shapes: B rows, N d_in, M d_sae.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

LEARNING_RATE = 1e-9
"""So small that the state, and with it L0, is the same in every repeat."""

NOISE = 0.1
ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a user asks for."""

    rows: int
    d_in: int
    d_sae: int
    l0: int
    beta1: float
    device: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.d_in}x{self.d_sae}, L0 {self.l0}"

    def facts(self) -> dict[str, object]:
        """For the record."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every implementation starts from; each copies the weights."""

    case: Case
    x_BN: Tensor
    W_dec_MN: Tensor
    threshold: float


def make(case: Case) -> Workload:
    """The same batch and weights every time."""
    torch.manual_seed(0)
    W_dec_MN = torch.nn.functional.normalize(torch.randn(case.d_sae, case.d_in), dim=1)
    frequency_M = 1 / (torch.arange(case.d_sae) + 50.0)[torch.randperm(case.d_sae)]
    blocks = frequency_M.expand(case.rows, -1).split(ROWS_AT_ONCE)
    x_BN = torch.cat([_sparse_sums(block, case.l0, W_dec_MN) for block in blocks])
    x_BN += NOISE * x_BN.std() * torch.randn_like(x_BN)
    x_BN *= (case.d_in / x_BN.square().sum(1).mean()).sqrt()
    pre = (x_BN[:ROWS_AT_ONCE] @ W_dec_MN.T).flatten()
    open_gates = len(x_BN[:ROWS_AT_ONCE]) * case.l0
    threshold = pre.topk(open_gates + 1).values[-2:].mean().item()
    return Workload(
        case=case,
        x_BN=x_BN.to(case.device),
        W_dec_MN=W_dec_MN.to(case.device),
        threshold=threshold,
    )


def _sparse_sums(frequency_BM: Tensor, l0: int, W_dec_MN: Tensor) -> Tensor:
    features = torch.multinomial(frequency_BM, l0)
    strengths = 1 + torch.randn(features.shape).abs()
    codes_BM = torch.zeros(frequency_BM.shape).scatter_(1, features, strengths)
    return codes_BM @ W_dec_MN
