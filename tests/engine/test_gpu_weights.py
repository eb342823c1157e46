"""Adam and the decoder's norm by Triton kernels, beside the CPU's kernels and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from gated_plugin.engine import gpu_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
M, N = 131, 70
OF_TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def weights(dtype: torch.dtype, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(M, N, device=DEVICE).to(dtype)


def row_sparse(dtype: torch.dtype, step: int) -> Tensor:
    """A gradient that 40 % of the rows have."""
    gradient = weights(dtype, step)
    gradient[torch.rand(M, device=DEVICE) < 0.6] = 0
    gradient[:, 3] = 0  # also where the row is touched: m / (√v + ε) is 0 there, not NaN
    return gradient


class Trained:
    """Weights that Adam steps by a kernel, or by torch."""

    def __init__(self, dtype: torch.dtype, betas: tuple[float, float]) -> None:
        self.W, self.betas = weights(dtype), betas
        self.first, self.square = torch.zeros_like(self.W), torch.zeros_like(self.W)
        self.last = torch.zeros(M, dtype=torch.int64, device=DEVICE)

    def step(self, gradient: Tensor, step: int) -> None:
        first = self.first if self.betas[0] else gradient
        gpu_weights.adam_step(
            *(self.W, gradient, first, self.square, self.last),
            **{"step": step, "lr": 0.01, "betas": self.betas, "eps": 1e-8},
        )


def by_torch(dtype: torch.dtype, betas: tuple[float, float], steps: int) -> tuple[Tensor, Tensor]:
    weight = nn.Parameter(weights(dtype))
    optimizer = Adam([weight], lr=0.01, betas=betas, eps=1e-8, fused=True)
    for step in range(1, steps + 1):
        weight.grad = row_sparse(dtype, step)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]["exp_avg_sq"]


def apart(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true.double()).norm() / true.double().norm()).item()


@OF_TYPES
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_is_torchs_with_the_decay_of_untouched_rows_put_off(dtype, beta1):
    betas, steps = (beta1, 0.99), 12
    ours = Trained(dtype, betas)
    for step in range(1, steps + 1):
        ours.step(row_sparse(dtype, step), step)
    assert beta1 or (ours.last < steps).any()
    gpu_weights.pay_decay(ours.square, ours.last, steps, betas[1])
    W, square = by_torch(dtype, betas, steps)
    # Triton's interpreter cuts to bfloat16, at every step, where a GPU, like torch, rounds.
    half = {"cuda": 5e-3, "cpu": 0.1}[DEVICE]
    tolerance = 1e-6 if dtype == torch.float32 else half
    assert apart(ours.W, W) < tolerance
    assert apart(ours.square, square) < 3 * tolerance
    assert (ours.last == steps).all()


def test_a_row_that_no_gradient_touches_is_not_written():
    ours, gradient = Trained(torch.float32, (0.0, 0.99)), row_sparse(torch.float32, 1)
    still = (gradient == 0).all(1)
    before = [t[still].clone() for t in (ours.W, ours.square, ours.last)]
    ours.step(gradient, 1)
    after = [t[still] for t in (ours.W, ours.square, ours.last)]
    assert still.any()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_gradient_that_is_nan_makes_its_row_nan_alone():
    ours, gradient = Trained(torch.float32, (0.0, 0.99)), row_sparse(torch.float32, 1)
    gradient[3] = torch.nan
    ours.step(gradient, 1)
    assert ours.W[3].isnan().all()
    assert ours.W.isnan().any(1).sum() == 1


@OF_TYPES
def test_rows_get_norm_1_and_rows_of_zeros_stay(dtype):
    W = weights(dtype)
    W[5] = 0
    gpu_weights.normalise_rows(W)
    norms = W.float().norm(dim=1)
    assert norms[5] == 0
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    assert (norms[torch.arange(M) != 5] - 1).abs().max() < tolerance


def test_a_row_of_norm_1_is_left_bit_for_bit():
    W = weights(torch.float32)
    gpu_weights.normalise_rows(W)
    before = W.clone()
    gpu_weights.normalise_rows(W)
    assert (before == W).all(1).float().mean() > 0.9


@OF_TYPES
def test_the_gradient_along_unit_rows_is_removed(dtype):
    W = torch.nn.functional.normalize(weights(torch.float32)).to(dtype)
    gradient = row_sparse(dtype, 1)
    exact = gradient.double() - (gradient.double() * W.double()).sum(1, keepdim=True) * W.double()
    gpu_weights.remove_parallel(gradient, W)
    assert apart(gradient, exact) < (1e-6 if dtype == torch.float32 else 2**-7.5)
