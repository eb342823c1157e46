"""Steering λ towards a number of features per token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.errors import GatedError
from gated_plugin.non_finite import NonFiniteLossError
from gated_plugin.paper_sae import STATE_FILENAME, mean_l0
from gated_plugin.trainer_hooks.l0_target import L0Target


def test_lambda_rises_while_too_many_features_fire_and_falls_while_too_few():
    high, low = L0Target(10), L0Target(10)
    for _ in range(50):
        high.observe(40)
        low.observe(2)
    assert high.factor > 1.2
    assert low.factor < 0.8


def test_half_of_the_gates_open_for_300_steps_winds_lambda_up_to_its_double_at_most():
    target = L0Target(50)
    for _ in range(300):
        target.observe(1000)
    for _ in range(300):
        target.observe(50)
    assert target.factor < 2.1


def test_at_the_target_lambda_stays():
    target = L0Target(50)
    for _ in range(500):
        target.observe(50)
    assert target.factor == pytest.approx(1)


@pytest.mark.parametrize("l1_coefficient", [0.1, 1.0])
def test_training_reaches_the_target_from_above_and_from_below(l1_coefficient):
    torch.manual_seed(0)
    target = 8.0
    dictionary = torch.nn.functional.normalize(torch.randn(64, 24), dim=1)
    sae = GatedTrainingSAE(
        GatedTrainingSAEConfig(d_in=24, d_sae=64, l1_coefficient=l1_coefficient, target_l0=target)
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3, betas=(0.0, 0.999))
    fired = []
    for number in range(2500):
        codes = (torch.rand(128, 64) < 0.08) * (1 + torch.rand(128, 64))
        output = sae.training_forward_pass(
            TrainStepInput(codes @ dictionary, {"l1": l1_coefficient}, None, number, False)
        )
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        fired.append(mean_l0(output.feature_acts))
    assert sum(fired[-200:]) / 200 == pytest.approx(target, rel=0.15)


def test_a_refused_batch_leaves_the_state_alone():
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=32, target_l0=4))
    sae.l0_target.observe(11.0)
    before = replace(sae.l0_target)
    with pytest.raises(NonFiniteLossError, match=r"step 7 was refused.*1 of its 4 activation rows"):
        sae.training_forward_pass(
            TrainStepInput(
                torch.full((4, 8), 1.0).index_fill(0, torch.tensor([2]), torch.nan),
                {"l1": 1.0},
                None,
                7,
                False,
            )
        )
    assert sae.l0_target == before


def test_the_state_travels_with_a_checkpoint_but_not_into_an_inference_model(tmp_path):
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=32, target_l0=4))
    sae.l0_target.observe(11.0)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "inference")
    resumed = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=32, target_l0=4))
    resumed.load_weights_from_checkpoint(tmp_path / "checkpoint")
    assert resumed.l0_target == sae.l0_target
    assert not (tmp_path / "inference" / STATE_FILENAME).exists()


@pytest.mark.parametrize("l1", [-1.0, float("nan")])
def test_a_penalty_that_rewards_firing_is_refused(l1):
    with pytest.raises(GatedError, match="l1_coefficient"):
        GatedTrainingSAEConfig(d_in=8, d_sae=32, l1_coefficient=l1)


@pytest.mark.parametrize("target", [0, -3, 32, 100])
def test_a_target_that_cannot_be_reached_is_refused(target):
    with pytest.raises(GatedError, match="target_l0"):
        GatedTrainingSAEConfig(d_in=8, d_sae=32, target_l0=target)
