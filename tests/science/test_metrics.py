"""Figures from sums over sequences, against their definitions over all tokens at once."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gated_plugin.engine.codes import SparseCodes
from gated_plugin.science.intervals import RESAMPLES, SEED, Interval
from gated_plugin.science.metrics import Batch, Figures, SaeSums, TextSums

SEQUENCES, CONTEXT, D_IN, D_SAE = 13, 39, 23, 252


class Text(NamedTuple):
    """One that was spliced; a fifth of its tokens do not count."""

    x: Tensor
    x_hat: Tensor
    features: Tensor
    clean: Tensor
    spliced: Tensor
    zero: Tensor
    sequence: Tensor


@pytest.fixture
def text() -> Text:
    """x with a mean far from 0, features a third of which never fire and a few are dense."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    counts = torch.rand(SEQUENCES, CONTEXT, generator=generator) < 0.8
    counts[4] = False
    tokens = int(counts.sum())
    x = noise(tokens, D_IN) + 30
    x_hat = 0.8 * x + noise(tokens, D_IN)
    features = (noise(tokens, D_SAE) - torch.linspace(3, 0, D_SAE)).relu()
    features[:, ::3] = 0
    clean = noise(SEQUENCES).abs()
    return Text(
        x,
        x_hat,
        features,
        clean,
        clean + 1,
        clean + noise(SEQUENCES).abs() + 3,
        counts.nonzero()[:, 0],
    )


def summed(text: Text, batch: int) -> tuple[Figures, SaeSums]:
    """By batches of so many sequences."""
    sums, sae = TextSums(), SaeSums(D_SAE)
    parts = Batch(text.x, text.sequence, SEQUENCES).parts(batch)
    for start, part in zip(range(0, SEQUENCES, batch), parts, strict=True):
        whole = slice(start, start + part.sequences)
        inside = (text.sequence >= start) & (text.sequence < start + part.sequences)
        predicted = torch.bincount(part.sequence_T, minlength=part.sequences)
        sums.update(part, predicted, text.clean[whole], text.zero[whole])
        codes = SparseCodes.from_dense(text.features[inside])
        sae.update(part, codes, text.x_hat[inside])
        sae.splice(text.spliced[whole])
    return sae.figures(sums), sae


def defined(text: Text) -> dict[str, float]:
    """The formulas over all tokens of a text."""
    x, x_hat = text.x.double(), text.x_hat.double()
    return {
        "l0": (text.features > 0).sum(1).double().mean().item(),
        "loss_recovered": (
            1 - (text.spliced - text.clean).sum().item() / (text.zero - text.clean).sum().item()
        ),
        "gamma": (x_hat.square().sum(1).mean() / (x_hat * x).sum(1).mean()).item(),
        "fvu": ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item(),
    }


@pytest.mark.parametrize("batch", [1, 5, SEQUENCES])
def test_figures_are_those_of_all_tokens_at_once(batch: int, text: Text) -> None:
    figures, sae = summed(text, batch)
    for name, value in defined(text).items():
        assert getattr(figures, name).value == pytest.approx(value, rel=1e-6)
    assert figures.fvu.value == pytest.approx(defined(text)["fvu"], rel=1e-10)
    assert figures.tokens == len(text.x)
    fires = text.features > 0
    assert torch.equal(sae.fired, fires.sum(0).double())
    assert torch.allclose(sae.magnitude, text.features.double().sum(0), rtol=1e-12)
    assert figures.alive == fires.any(0).double().mean().item() < 1
    assert figures.n_dead == (~fires.any(0)).sum() >= D_SAE // 3
    assert figures.n_dense == (fires.double().mean(0) > 0.1).sum() > 0


def test_intervals_are_those_of_texts_made_of_sequences_that_are_drawn(text: Text) -> None:
    figures, _ = summed(text, 5)
    drawings = torch.randint(
        SEQUENCES, (RESAMPLES, SEQUENCES), generator=torch.Generator().manual_seed(SEED)
    )
    drawn: dict[str, list[float]] = {name: [] for name in defined(text)}
    for sequences in drawings:
        tokens = torch.cat([(text.sequence == s).nonzero()[:, 0] for s in sequences])
        of_tokens = (tensor[tokens] for tensor in text[:3])
        of_sequences = (tensor[sequences] for tensor in text[3:6])
        for name, value in defined(Text(*of_tokens, *of_sequences, text.sequence)).items():
            drawn[name].append(value)
    for name, values in drawn.items():
        low, high = torch.tensor(values).double().quantile(torch.tensor([0.025, 0.975]).double())
        expected = Interval(low.item(), high.item())
        assert getattr(figures, name).interval == pytest.approx(expected, rel=1e-6)
        assert low < getattr(figures, name).value < high


def one(x: Tensor, x_hat: Tensor, features: Tensor, losses: tuple[float, float, float]) -> Figures:
    """Figures of a text of one sequence; losses left alone, spliced, zeroed."""
    sums, sae = TextSums(), SaeSums(features.shape[1])
    batch = Batch(x, torch.zeros(len(x), dtype=torch.long), 1)
    clean, spliced, zero = torch.tensor(losses)[:, None]
    sums.update(batch, torch.ones(1), clean, zero)
    sae.update(batch, SparseCodes.from_dense(features), x_hat)
    sae.splice(spliced)
    return sae.figures(sums)


def test_a_shrunken_reconstruction_has_its_shrinkage_as_gamma() -> None:
    x = torch.randn(64, 8, dtype=torch.float64)
    assert one(x, 0.7 * x, torch.ones(64, 4), (1, 2, 3)).gamma.value == pytest.approx(0.7)


def test_low_precision_is_summed_in_double() -> None:
    x = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    features = torch.ones(4096, 1, dtype=torch.bfloat16)
    sae = SaeSums(1)
    batch = Batch(x, torch.zeros(4096, dtype=torch.long), 1)
    sae.update(batch, SparseCodes.from_dense(features), 2 * x)
    assert sae.magnitude.item() == 4096
    assert one(x, 2 * x, features, (1, 2, 3)).gamma.value == 2


def test_a_figure_that_is_not_defined_is_none() -> None:
    figures = one(torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(3, 2), (4, 4, 4))
    assert figures.gamma.value is figures.fvu.value is figures.loss_recovered.value is None
    assert figures.l0.value == 0


def test_one_sequence_has_no_intervals() -> None:
    x = torch.randn(5, 2)
    figures = one(x, x, torch.ones(5, 2), (4, 5, 6))
    assert figures.l0 == (2, None)
    assert figures.loss_recovered == (0.5, None)


@pytest.mark.parametrize(("ce_sae", "expected"), [(4, 1), (7, 0), (5, 2 / 3), (8.5, -0.5)])
def test_loss_recovered(ce_sae: float, expected: float) -> None:
    x = torch.randn(5, 2)
    figures = one(x, x, torch.ones(5, 2), (4, ce_sae, 7))
    assert figures.loss_recovered.value == pytest.approx(expected)
