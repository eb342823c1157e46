"""Decoder rows at norm 1 in every trainer, and their gradient's component along them gone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig

D_IN, D_SAE, BATCH = 16, 64, 32


def make_sae(**fields: object) -> GatedTrainingSAE:
    torch.manual_seed(0)
    return GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **fields))


def make_trainer(sae: TrainingSAE, **fields: object) -> SAETrainer:
    data = iter(lambda: torch.randn(BATCH, D_IN), None)
    cfg = SAETrainerConfig(
        total_training_samples=1000 * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_end=1e-2,
        adam_beta1=0.0,
        logger=LoggingConfig(log_to_wandb=False),
        **fields,
    )
    return SAETrainer(cfg=cfg, sae=sae, data_provider=data)


def train(trainer: SAETrainer, steps: int) -> None:
    for _ in range(steps):
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1


def loss_of(sae: GatedTrainingSAE, x: torch.Tensor | None = None) -> torch.Tensor:
    x = torch.randn(BATCH, D_IN, dtype=sae.dtype) if x is None else x
    return sae.training_forward_pass(TrainStepInput(x, {"l1": 1.0}, None, 0, False)).loss


def norm_error(sae: TrainingSAE) -> float:
    return (sae.W_dec.detach().double().norm(dim=1) - 1).abs().max().item()


def test_rows_are_at_norm_one_after_every_step_of_saelens_trainer():
    trainer = make_trainer(make_sae())
    for _ in range(20):
        train(trainer, 1)
        assert norm_error(trainer.sae) < 1e-6


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_rows_are_at_norm_one_in_a_bare_loop(optimizer):
    sae = make_sae()
    stepper = optimizer(sae.parameters(), lr=1e-2)
    for _ in range(5):
        loss_of(sae).backward()
        stepper.step()
        stepper.zero_grad()
        assert norm_error(sae) < 1e-6


def test_gradient_along_rows_is_gone_before_a_trainer_clips(monkeypatch):
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def look_then_clip(parameters, max_norm):
        parameters = list(parameters)
        seen.extend(p.grad.clone() for p in parameters if p is trainer.sae.W_dec)
        return clip(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", look_then_clip)
    trainer = make_trainer(make_sae())
    rows = trainer.sae.W_dec.detach().clone()
    train(trainer, 1)
    (gradient,) = seen
    along = (gradient * rows).sum(1).abs() / gradient.norm(dim=1).clamp_min(1e-12)
    assert gradient.norm() > 0.1
    assert along.max() < 1e-5


def test_projection_of_accumulated_gradients_is_that_of_their_sum():
    once, twice = make_sae(), make_sae()
    x = torch.randn(BATCH, D_IN)
    (loss_of(once, x) + loss_of(once, 2 * x)).backward()
    loss_of(twice, x).backward()
    loss_of(twice, 2 * x).backward()
    torch.testing.assert_close(once.W_dec.grad, twice.W_dec.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))])
def test_copies_are_held_too_and_the_original_still_is(copied):
    original = make_sae()
    train(make_trainer(original), 2)
    other = copied(original)
    for sae in (other, original):
        train(make_trainer(sae), 3)
        assert norm_error(sae) < 1e-6


def test_parameters_put_in_by_assignment_are_held():
    sae = make_sae()
    train(make_trainer(sae), 1)
    state = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.load_state_dict(state, assign=True)
    train(make_trainer(sae), 3)
    assert norm_error(sae) < 1e-6


def test_checkpoint_and_resume_go_on_bit_for_bit(tmp_path):
    torch.manual_seed(3)
    batches = [torch.randn(BATCH, D_IN) for _ in range(8)]
    whole = make_trainer(make_sae())
    for batch in batches[:4]:
        whole.step(batch)
    whole.save_checkpoint("at_4", base_path=tmp_path)
    resumed = make_trainer(make_sae())
    resumed.load_trainer_state(tmp_path / "at_4")
    resumed.sae.load_weights_from_checkpoint(tmp_path / "at_4")
    for batch in batches[4:]:
        whole.step(batch)
        resumed.step(batch)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[name]), name
    assert norm_error(resumed.sae) < 1e-6


def test_a_free_decoder_norm_is_folded_at_the_first_step_without_changing_the_function():
    sae = make_sae()
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    x = torch.randn(5, D_IN)
    before = sae(x)
    loss_of(sae)
    assert norm_error(sae) < 1e-6
    torch.testing.assert_close(sae(x), before)


def test_checkpoints_of_saelens_gated_warm_start_as_the_same_function(tmp_path):
    theirs = saelens.GatedTrainingSAE(saelens.GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_model(tmp_path)
    ours = TrainingSAE.load_from_disk(tmp_path)
    assert type(ours) is GatedTrainingSAE
    x = torch.randn(7, D_IN)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected)
    loss_of(ours)
    torch.testing.assert_close(ours(x), expected)
    train(make_trainer(ours), 3)
    assert norm_error(ours) < 1e-6


@pytest.mark.parametrize("normalization", ["expected_average_only_in", "covariance_whitening"])
def test_folding_activation_scaling_ends_at_norm_one(normalization):
    trainer = make_trainer(
        make_sae(normalize_activations=normalization), n_batches_for_norm_estimate=5
    )
    trainer.cfg.total_training_samples = 10 * BATCH
    sae = trainer.fit()
    assert norm_error(sae) < 1e-6


def test_bfloat16_rows_are_at_norm_one_to_their_own_precision():
    sae = make_sae(dtype="bfloat16")
    train(make_trainer(sae), 5)
    assert sae.W_dec.dtype == torch.bfloat16
    assert norm_error(sae) < 4e-3


def test_a_decoder_that_does_not_train_is_left_alone():
    sae = make_sae()
    sae.W_dec.requires_grad_(False)
    frozen = sae.W_dec.clone()
    loss_of(sae).backward()
    torch.optim.Adam([p for p in sae.parameters() if p.requires_grad]).step()
    assert torch.equal(sae.W_dec, frozen)


def test_other_models_in_the_process_are_left_alone():
    train(make_trainer(make_sae()), 1)
    layer = torch.nn.Linear(4, 4)
    layer(torch.randn(2, 4)).sum().backward()
    stepper = torch.optim.SGD(layer.parameters(), lr=0.5)
    expected = layer.weight.detach() - 0.5 * layer.weight.grad
    stepper.step()
    torch.testing.assert_close(layer.weight.detach(), expected)
