"""Our `trainer_state.pt` is SAELens' own: in content, and for whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from same_values import assert_same

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig, trainer_state

D_IN, D_SAE, BATCH = 16, 64, 32
STATE, SCALER = "trainer_state.pt", "activation_scaler.json"
pytestmark = pytest.mark.usefixtures("one_thread")

Load = Callable[[SAETrainer[Any, Any], Path], None]
LOADS: dict[str, Load] = {"ours": trainer_state.load, "SAELens'": SAETrainer.load_trainer_state}


def make_trainer(beta1: float = 0.0, **fields: Any) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_warm_up_steps=5))
    cfg = SAETrainerConfig(
        total_training_samples=20 * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_end=1e-3,
        lr_warm_up_steps=4,
        lr_decay_steps=5,
        adam_beta1=beta1,
        logger=LoggingConfig(log_to_wandb=False),
        **fields,
    )
    return SAETrainer(cfg=cfg, sae=sae, data_provider=iter(()))


def train(trainer: SAETrainer[Any, Any], steps: range) -> None:
    for step in steps:
        batch = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(step))
        trainer.step(batch)
        trainer.n_training_steps += 1


def weights(sae: TrainingSAE[Any]) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in sae.state_dict().items()}


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("steps", [0, 3, 12])
def test_holds_what_saelens_would_have_written(beta1: float, steps: int, tmp_path: Path) -> None:
    trainer = make_trainer(beta1)
    trainer.activation_scaler.scaling_factor = 1.5
    train(trainer, range(steps))
    (tmp_path / "ours").mkdir()
    trainer_state.save(trainer, tmp_path / "ours")
    trainer.save_trainer_state(tmp_path / "theirs")
    ours, theirs = (torch.load(tmp_path / name / STATE) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert_same({key: ours[key] for key in theirs}, theirs)
    ours, theirs = ((tmp_path / name / SCALER).read_text() for name in ("ours", "theirs"))
    assert ours == theirs


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("saved_by", ["ours", "SAELens'"])
def test_goes_on_bit_for_bit(beta1: float, load: str, saved_by: str, tmp_path: Path) -> None:
    trainer = make_trainer(beta1)
    train(trainer, range(7))
    trainer.sae.save_model(tmp_path)
    if saved_by == "ours":
        trainer_state.save(trainer, tmp_path)
    else:
        trainer.save_trainer_state(tmp_path)
    train(trainer, range(7, 20))
    resumed = make_trainer(beta1)
    resumed.sae.load_weights_from_checkpoint(tmp_path)
    LOADS[load](resumed, tmp_path)
    assert resumed.n_training_steps == 7
    train(resumed, range(7, 20))
    assert_same(weights(resumed.sae), weights(trainer.sae))
    assert_same(resumed.act_freq_scores, trainer.act_freq_scores)


def test_nothing_refers_to_the_file_once_it_is_loaded(tmp_path: Path) -> None:
    trainer = make_trainer()
    train(trainer, range(3))
    trainer_state.save(trainer, tmp_path)
    resumed = make_trainer()
    trainer_state.load(resumed, tmp_path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


def test_moments_take_the_strides_of_their_weights(tmp_path: Path) -> None:
    trainer = make_trainer(0.9)
    train(trainer, range(3))
    trainer_state.save(trainer, tmp_path)
    resumed = make_trainer(0.9)
    train(resumed, range(1))
    trainer_state.load(resumed, tmp_path)
    for weight, state in resumed.optimizer.state.items():
        assert state["exp_avg_sq"].stride() == weight.stride()
    assert not resumed.sae.W_enc.is_contiguous()
