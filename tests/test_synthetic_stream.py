"""Synthetic activations: the statistics that they promise, and batches that depend on their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gated_plugin.recipes import Recipe
from gated_plugin.synthetic_stream import (
    HELD_OUT,
    MASSIVE,
    MEAN_SHARE,
    NOISE_SHARE,
    TRAINING,
    SyntheticSource,
    SyntheticStream,
    batch_generator,
)

D_IN, ROWS = 256, 40_000
Streams = Callable[..., SyntheticStream]


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource.of(D_IN)


@pytest.fixture(scope="module")
def x_BN(source: SyntheticSource) -> Tensor:
    return source.draw(ROWS, batch_generator(1, TRAINING, 0, 0, "cpu")).double()


@pytest.fixture
def stream(tiny: Path) -> Streams:
    def make(*overrides: str) -> SyntheticStream:
        return SyntheticStream(Recipe.load(tiny, ["synthetic=true", *overrides]).runner_config())

    return make


@pytest.mark.parametrize("d_in", [1, 16, 123, 768])
def test_the_mean_square_is_d_in_at_every_width(d_in: int) -> None:
    x = SyntheticSource.of(d_in).draw(10_000, batch_generator(1, TRAINING, 0, 0, "cpu"))
    assert x.shape == (10_000, d_in)
    assert x.dtype == torch.float32
    assert x.double().square().sum(1).mean().item() == pytest.approx(d_in, rel=0.1)


def test_the_mean_is_the_sources_and_not_zero(source: SyntheticSource, x_BN: Tensor) -> None:
    mean = x_BN.mean(0)
    assert mean.square().sum().item() == pytest.approx(MEAN_SHARE * D_IN, rel=0.03)
    assert (mean - source.mean_N).norm() < 0.03 * mean.norm()
    alike = torch.cosine_similarity(x_BN[: ROWS // 2], x_BN[ROWS // 2 :]).mean().item()
    assert alike == pytest.approx(MEAN_SHARE, abs=0.06)


def only(source: SyntheticSource, direction: int) -> SyntheticSource:
    """The source with its other directions at 0, and no mean or noise: what is left is sₖ dₖ."""
    of_one = torch.zeros_like(source.directions_FN)
    of_one[direction] = source.directions_FN[direction]
    nothing = torch.zeros(D_IN)
    return SyntheticSource(
        of_one, source.rates_F, source.typical_strength, nothing, nothing, nothing
    )


@pytest.mark.parametrize("direction", [0, 10, 100])
def test_directions_fire_as_often_as_promised_with_positive_heavy_tailed_strengths(
    source: SyntheticSource, direction: int
) -> None:
    x = only(source, direction).draw(ROWS, batch_generator(1, TRAINING, 0, 0, "cpu"))
    strengths = x @ source.directions_FN[direction]
    fired = strengths[strengths != 0].double()
    promised = 1 - math.exp(-source.rates_F[direction].item())
    deviation = math.sqrt(promised * (1 - promised) / ROWS)
    assert abs(len(fired) / ROWS - promised) < 4 * deviation
    assert (fired > 0).all()
    assert fired.max() > 6 * fired.median()


def test_frequencies_follow_a_power_law_over_more_directions_than_dimensions(
    source: SyntheticSource,
) -> None:
    rates = source.rates_F
    assert len(rates) == 4 * D_IN
    assert rates.sum().item() == pytest.approx(D_IN / 16)
    tail = rates[len(rates) // 10 :: 50].log()
    ranks = torch.arange(len(rates))[len(rates) // 10 :: 50].double().log()
    slopes = tail.diff() / ranks.diff()
    assert slopes.mean().item() == pytest.approx(-1, abs=0.1)
    assert 1 - math.exp(-rates[0].item()) < 0.5
    norms = source.directions_FN.norm(dim=1)
    assert (norms - 1).abs().max() < 1e-5


def test_a_few_coordinates_are_massive_and_the_kurtosis_is_high(x_BN: Tensor) -> None:
    scales = x_BN.square().mean(0).sqrt().sort(descending=True).values
    assert scales[MASSIVE - 1] > 2.5 * scales[D_IN // 2]
    assert scales[MASSIVE] < 2.5 * scales[D_IN // 2]
    centred = x_BN - x_BN.mean()
    assert centred.pow(4).mean() / centred.square().mean() ** 2 > 6


def test_the_spectrum_decays_without_an_edge(x_BN: Tensor) -> None:
    eigenvalues = torch.linalg.eigvalsh(x_BN.T.cov()).flip(0)
    assert eigenvalues[-1] > 0.02
    assert eigenvalues[0] / eigenvalues[-1] > 50
    assert 0.2 < eigenvalues[: D_IN // 10].sum() / eigenvalues.sum() < 0.8
    # From one octave of ranks to the next by less than a factor of 5: a power law, not a cliff.
    octaves = eigenvalues[[1, 2, 4, 8, 16, 32, 64, 128]]
    assert (octaves[:-1] / octaves[1:] < 5).all()


def test_the_noise_is_small_and_decays(source: SyntheticSource) -> None:
    variances = source.noise_N.square().sort(descending=True).values
    assert variances.sum().item() == pytest.approx(NOISE_SHARE * D_IN)
    assert variances[0] / variances[-1] == pytest.approx(D_IN)


def test_batches_depend_on_seed_and_place_alone(stream: Streams) -> None:
    one = stream()
    first, second, third = next(one), next(one), next(one)
    other = stream()
    other.seek(**{"chunk": 0, "served": 1})
    assert torch.equal(next(other), second)
    assert torch.equal(next(other), third)
    assert other.position() == one.position() == {"chunk": 0, "served": 3}
    assert first.shape == (64, 256)
    assert not torch.equal(first, second)
    assert not torch.equal(next(stream("seed=7")), first)


def test_batches_and_their_rows_are_independent(source: SyntheticSource) -> None:
    places = [
        *((1, TRAINING, 0, 0), (1, TRAINING, 0, 1), (2, TRAINING, 0, 0), (1, TRAINING, 1, 0)),
        (1, HELD_OUT, 0, 0),
    ]
    drawn = [source.draw(4000, batch_generator(*place, "cpu")) - source.mean_N for place in places]
    drawn.append(drawn[0].roll(1, 0))
    for k, a in enumerate(drawn):
        for b in drawn[:k]:
            correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
            assert correlation.mean().abs() < 0.02  # 4000 rows: a standard error of 0.003


def test_all_sources_of_a_width_are_one(source: SyntheticSource) -> None:
    again = SyntheticSource.of(D_IN)
    assert torch.equal(again.directions_FN, source.directions_FN)
    assert torch.equal(again.offset_N, source.offset_N)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_batches_come_in_the_saes_type(stream: Streams, dtype: str) -> None:
    batch = next(stream(f"sae.dtype={dtype}"))
    assert batch.dtype == getattr(torch, dtype)


def test_a_batch_holds_no_matrix_of_rows_and_directions(
    source: SyntheticSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 0

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.numel())
            return made

    with Sizes():
        source.draw(2000, batch_generator(1, TRAINING, 0, 0, "cpu"))
    assert largest == 2000 * D_IN
