"""Figures summed over batches, against their definitions over everything at once."""

from __future__ import annotations

import pytest
import torch

from gated_plugin.science.metrics import ReconstructionSums, loss_recovered

TOKENS, D_IN, D_SAE = 507, 123, 252


@pytest.fixture
def activations() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x with a mean far from 0, x̂, and features a third of which never fire."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, D_IN, generator=generator) + 30
    x_hat = 0.8 * x + torch.randn(TOKENS, D_IN, generator=generator)
    features = (torch.randn(TOKENS, D_SAE, generator=generator) - 1).relu()
    features[:, ::3] = 0
    return x, x_hat, features


@pytest.mark.parametrize("batch", [1, 64, TOKENS])
def test_figures_are_those_of_all_tokens_at_once(
    batch: int, activations: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    sums = ReconstructionSums(D_IN, D_SAE)
    for parts in zip(*(tensor.split(batch) for tensor in activations), strict=True):
        sums.update(*parts)
    x, x_hat, features = (tensor.double() for tensor in activations)
    figures = sums.figures()
    assert figures.tokens == TOKENS
    assert figures.l0 == (features > 0).sum(1).double().mean().item()
    assert figures.alive == (features > 0).any(0).double().mean().item() == 168 / 252
    gamma = x_hat.square().sum(1).mean() / (x_hat * x).sum(1).mean()
    assert figures.gamma == pytest.approx(gamma.item(), rel=1e-12)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert figures.fvu == pytest.approx(fvu.item(), rel=1e-10)
    assert torch.equal(sums.fired, (features > 0).sum(0).double())
    assert torch.allclose(sums.magnitude, features.sum(0), rtol=1e-12)


def test_a_shrunken_reconstruction_has_its_shrinkage_as_gamma() -> None:
    x = torch.randn(64, 8, dtype=torch.float64)
    sums = ReconstructionSums(8, 4)
    sums.update(x, 0.7 * x, torch.ones(64, 4))
    assert sums.figures().gamma == pytest.approx(0.7)


def test_low_precision_is_summed_in_double() -> None:
    x = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    sums = ReconstructionSums(1, 1)
    sums.update(x, 2 * x, torch.ones(4096, 1, dtype=torch.bfloat16))
    assert sums.magnitude.item() == 4096
    assert sums.figures().gamma == 2


def test_a_figure_that_is_not_defined_is_none() -> None:
    sums = ReconstructionSums(2, 2)
    sums.update(torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    assert sums.figures().gamma is None
    assert sums.figures().fvu is None
    assert loss_recovered(4.0, 4.0, 4.0) is None


@pytest.mark.parametrize(("ce_sae", "expected"), [(4, 1), (7, 0), (5, 2 / 3), (8.5, -0.5)])
def test_loss_recovered(ce_sae: float, expected: float) -> None:
    assert loss_recovered(4, ce_sae, 7) == pytest.approx(expected)
