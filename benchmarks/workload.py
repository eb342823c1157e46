"""What is measured: a batch, and weights as training leaves them, of a given shape and L0.

Features fire with power-law frequencies, strengths 1 + |normal|; the batch is scaled to
E‖x‖² = N, as SAELens scales activations. Decoder rows have norm 1, W_enc = W_decᵀ, and the gate's
threshold opens L0 gates a row on average: b_gate = −threshold, b_mag = −threshold / 2. Above half
of the gates the threshold is negative, and gates that are open with f = 0 count too.

Made on the device, some rows at a time: no array [B, M] is ever held. Each kind of device draws
numbers of its own.

Shapes: B rows, N d_in, M d_sae.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

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

    def without_weights(self) -> Workload:
        """For who has copied them, and needs the memory."""
        return replace(self, W_dec_MN=self.W_dec_MN.new_empty(0, self.case.d_in))


def make(case: Case) -> Workload:
    """The same batch and weights every time."""
    torch.manual_seed(0)
    M, device = case.d_sae, case.device
    W_dec_MN = torch.randn(M, case.d_in, device=device)
    W_dec_MN /= W_dec_MN.norm(dim=1, keepdim=True)
    frequency_M = 1 / (torch.arange(M, device=device) + 50.0)[torch.randperm(M, device=device)]
    blocks = frequency_M.expand(case.rows, -1).split(ROWS_AT_ONCE)
    x_BN = torch.cat([_sparse_sums(block, case.l0, W_dec_MN) for block in blocks])
    x_BN += NOISE * x_BN.std() * torch.randn_like(x_BN)
    x_BN *= (case.d_in / x_BN.square().sum(1).mean()).sqrt()
    pre = (x_BN[:ROWS_AT_ONCE] @ W_dec_MN.T).flatten()
    open_gates = len(x_BN[:ROWS_AT_ONCE]) * case.l0
    threshold = pre.topk(open_gates + 1).values[-2:].mean().item()
    return Workload(case=case, x_BN=x_BN, W_dec_MN=W_dec_MN, threshold=threshold)


def _sparse_sums(frequency_BM: Tensor, l0: int, W_dec_MN: Tensor) -> Tensor:
    features = torch.multinomial(frequency_BM, l0)
    strengths = 1 + torch.randn(features.shape, device=features.device).abs()
    return torch.nn.functional.embedding_bag(
        features, W_dec_MN, per_sample_weights=strengths, mode="sum"
    )
