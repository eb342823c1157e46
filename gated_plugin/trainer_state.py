"""The state of SAELens' trainer in SAELens' own two files, without a copy of it in memory.

SAELens reads what is written here, and what it writes is read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, TRAINER_STATE_FILENAME
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from gated_plugin import torch_files
from gated_plugin.trainer_hooks import adam

COUNTERS = (
    "n_training_samples",
    "n_training_steps",
    "act_freq_scores",
    "n_forward_passes_since_fired",
    "n_frac_active_samples",
    "started_fine_tuning",
)


def save(trainer: SAETrainer[Any, Any], folder: Path) -> None:
    """As `SAETrainer.save_trainer_state`, in blocks."""
    schedulers = trainer.coefficient_schedulers.items()
    state = {
        "optimizer": adam.state_in_place(trainer.optimizer),
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        **{name: getattr(trainer, name) for name in COUNTERS},
        "coefficient_schedulers": {name: each.state_dict() for name, each in schedulers},
    }
    torch_files.save(state, folder / TRAINER_STATE_FILENAME)
    trainer.activation_scaler.save(str(folder / ACTIVATION_SCALER_CFG_FILENAME))


def load(trainer: SAETrainer[Any, Any], folder: Path) -> None:
    """As `SAETrainer.load_trainer_state`; the file is mapped, and each tensor copied once."""
    trainer.activation_scaler.load(folder / ACTIVATION_SCALER_CFG_FILENAME)
    file = folder / TRAINER_STATE_FILENAME
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    adam.load_state(trainer.optimizer, state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    for name in COUNTERS:
        setattr(trainer, name, _moved(state[name], trainer.cfg.device))
    for name, each in state["coefficient_schedulers"].items():
        trainer.coefficient_schedulers[name].load_state_dict(each)


def _moved(value: Any, device: str) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
