"""Recovery of known features through SAELens' synthetic runner, and the search for an L0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sae_lens.saes.sae import SAE
from sae_lens.synthetic import (
    ConstantFiringProbabilityConfig,
    OrthogonalizationConfig,
    SyntheticModelConfig,
)

from gated_plugin.errors import GatedError
from gated_plugin.science import synthetic
from gated_plugin.science.synthetic import ARMS, Arm, Recovery, at_l0, compare

EASY = SyntheticModelConfig(
    num_features=24,
    hidden_dim=16,
    firing_probability=ConstantFiringProbabilityConfig(probability=0.06),
    orthogonalization=OrthogonalizationConfig(num_steps=50),
    std_firing_magnitudes=0.2,
    seed=0,
)
"""24 features in 16 dimensions, of which 1.4 fire at once."""

BATCH = 256
SAMPLES = BATCH * 200
BLANK = Recovery(
    arm="blank",
    seed=0,
    knob=0.0,
    l0=0.0,
    true_l0=0.0,
    best_match=0.0,
    mcc=0.0,
    precision=0.0,
    recall=0.0,
    f1=0.0,
    uniqueness=0.0,
    shrinkage=0.0,
    explained_variance=0.0,
    dead=0,
    samples=0,
    trainings=1,
)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "EVALUATED_SAMPLES", 2048)
    monkeypatch.setattr(synthetic, "BATCH", BATCH)


def gated(**settings: object) -> dict[str, Arm]:
    return {"ours": Arm(architecture="gated", knob="target_l0", lr=1e-2, settings=settings)}


def test_features_of_an_easy_model_are_found() -> None:
    (row,) = compare(EASY, gated(), [1], l0=1.5, samples=SAMPLES, quiet=True)
    assert (row.arm, row.seed, row.samples) == ("ours", 1, SAMPLES)
    assert row.l0 == pytest.approx(1.5, rel=synthetic.TOLERANCE)
    assert row.true_l0 == pytest.approx(24 * 0.06, rel=0.1)
    assert row.best_match > 0.85
    assert row.mcc > 0.8
    assert row.f1 > 0.6


def test_rows_are_those_of_the_seed_and_leave_torchs_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthetic, "TRIES", 1)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    rows = compare(EASY, gated(), [1, 2, 1], l0=1.5, samples=5 * BATCH, quiet=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert rows[0] == rows[2]
    assert rows[0].best_match != rows[1].best_match


def test_what_is_measured_is_the_dictionary_that_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary of half of the true features, the other half opposite, matches as well as that."""
    model = synthetic._build(EASY)
    truth = model.feature_dict.feature_vectors.detach()
    load = SAE.load_from_disk

    def load_truth(folder: str) -> SAE:
        sae = load(folder)
        sae.W_dec.data = torch.cat([truth[:12], -truth[:12]])
        return sae

    monkeypatch.setattr(SAE, "load_from_disk", load_truth)
    monkeypatch.setattr(synthetic, "TRIES", 1)
    (row,) = compare(EASY, gated(), [1], l0=1.5, samples=BATCH, quiet=True)
    cosines = truth @ torch.cat([truth[:12], -truth[:12]]).T
    assert row.best_match == pytest.approx(cosines.max(1).values.mean().item(), rel=1e-5)
    assert row.uniqueness == 0.5


@pytest.mark.parametrize("name", list(ARMS))
def test_every_architecture_trains_in_saelens_synthetic_runner(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "TRIES", 1)
    arms = {name: ARMS[name]}
    (row,) = compare(EASY, arms, [1], l0=2, samples=5 * BATCH, quiet=True)
    assert 0 <= row.l0 <= 24
    assert 0 < row.best_match <= 1


def trained(l0: Callable[[float], float]) -> Callable[[float], Recovery]:
    return lambda knob: replace(BLANK, knob=knob, l0=l0(knob))


@pytest.mark.parametrize("start", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_a_search_finds_the_l0(exponent: float, start: float) -> None:
    """An L0 that falls by a power law, and to nothing at 20."""
    train = trained(lambda knob: 10 * knob**-exponent if knob < 20 else 0.0)
    found = at_l0(train, start, 4.0)
    assert found.trainings <= synthetic.TRIES
    assert found.l0 == pytest.approx(4.0, rel=0.06)


def test_a_search_of_an_l0_that_rises_with_the_knob() -> None:
    found = at_l0(trained(lambda knob: 0.8 * knob), 4.0, 4.0, rising=True)
    assert found.knob == pytest.approx(5.0, rel=synthetic.TOLERANCE)
    assert found.trainings == 2


def test_a_search_that_finds_nothing_ends_with_the_nearest() -> None:
    found = at_l0(trained(lambda knob: 8.0 if knob < 2.5 else 1.0), 1.0, 4.0)
    assert found.trainings == synthetic.TRIES
    assert found.l0 == 8.0


def test_a_search_that_starts_at_the_answer_trains_once() -> None:
    assert at_l0(trained(lambda knob: 10 / knob), 2.5, 4.0).trainings == 1


def test_the_next_seed_starts_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def run(training: synthetic._Training, knob: float) -> Recovery:
        asked.append(knob)
        return replace(BLANK, knob=knob, l0=10 / knob)

    monkeypatch.setattr(synthetic._Training, "run", run)
    arms = {"standard": Arm(architecture="standard", knob="l1_coefficient", start=1.0)}
    rows = compare(EASY, arms, [1, 2], l0=4.0, samples=SAMPLES, quiet=True)
    assert asked[-1] == rows[0].knob == rows[1].knob
    assert rows[1].trainings == 1


def test_a_setting_that_the_architecture_lacks_is_refused() -> None:
    with pytest.raises(GatedError, match=r"'ours' does not fit .*'gated'.*nonsense"):
        compare(EASY, gated(nonsense=1), [1], l0=1.5, samples=SAMPLES, quiet=True)
