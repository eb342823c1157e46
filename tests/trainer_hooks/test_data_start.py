"""Features that start at inputs."""

from __future__ import annotations

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from torch import nn

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.baseline import L1BaselineTrainingSAE, L1BaselineTrainingSAEConfig
from gated_plugin.errors import GatedError

D_IN, D_SAE, BATCH = 12, 50, 20


def gated(**settings):
    return GatedTrainingSAE(
        GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, start="data", **settings)
    )


def batches(count):
    generator = torch.Generator().manual_seed(3)
    return [5 + torch.randn(BATCH, D_IN, generator=generator) for _ in range(count)]


def step(sae, x, number=0):
    return sae.training_forward_pass(TrainStepInput(x, {"l1": 1.0}, None, number, False))


def directions(x, mean):
    return nn.functional.normalize(x - mean, dim=1)


@pytest.mark.parametrize(
    "sae",
    [
        gated(encoder_init_norm=0.3),
        L1BaselineTrainingSAE(
            L1BaselineTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, start="data", encoder_init_norm=0.3)
        ),
    ],
    ids=["gated", "baseline"],
)
def test_as_many_features_as_a_batch_has_rows_start_at_them_until_all_have(sae):
    x = batches(4)
    mean = x[0].mean(0)
    untouched = sae.W_dec[BATCH:].detach().clone()
    step(sae, x[0])
    torch.testing.assert_close(sae.b_dec.detach(), mean)
    torch.testing.assert_close(sae.W_dec[:BATCH].detach(), directions(x[0], mean))
    assert torch.equal(sae.W_dec[BATCH:], untouched)
    step(sae, x[1])
    step(sae, x[2])
    expected = directions(torch.cat(x)[:D_SAE], mean)
    torch.testing.assert_close(sae.W_dec.detach(), expected)
    torch.testing.assert_close(sae.W_enc.detach(), 0.3 * expected.T)
    step(sae, x[3])
    torch.testing.assert_close(sae.W_dec.detach(), expected)


def test_the_first_forward_pass_is_of_the_weights_that_it_set():
    x = batches(1)[0]
    sae = gated()
    output = step(sae, x)
    assert torch.equal(output.sae_out, sae(x))


def test_an_input_without_a_direction_leaves_its_feature_random():
    sae = gated()
    before = sae.W_dec.detach().clone()
    step(sae, torch.ones(BATCH, D_IN))
    assert torch.equal(sae.W_dec, before)


def test_evaluation_starts_nothing():
    sae = gated()
    with torch.no_grad():
        step(sae, batches(1)[0])
    assert not sae.b_dec.any()


def test_a_checkpoint_in_the_middle_of_the_start_goes_on_where_it_was(tmp_path):
    x = batches(3)
    whole, first = gated(), gated()
    whole.load_state_dict(first.state_dict())
    for batch in x:
        step(whole, batch)
    step(first, x[0])
    first.save_model(tmp_path)
    resumed = gated()
    resumed.load_weights_from_checkpoint(tmp_path)
    for batch in x[1:]:
        step(resumed, batch)
    assert torch.equal(resumed.W_dec, whole.W_dec)
    assert torch.equal(resumed.W_enc, whole.W_enc)


def test_weights_without_such_a_state_have_started(tmp_path):
    plain = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    plain.save_model(tmp_path)
    sae = gated()
    sae.load_weights_from_checkpoint(tmp_path)
    step(sae, batches(1)[0])
    assert torch.equal(sae.W_dec, plain.W_dec)


def test_an_unknown_start_is_refused():
    with pytest.raises(GatedError, match=r"start is 'zero'; give one of random, data\."):
        GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, start="zero")
