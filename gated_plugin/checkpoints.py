"""Checkpoints that a kill cannot spoil: written beside, synced, renamed; the last good one stays.

A checkpoint is a folder of SAELens' own files (`cfg.json`, `sae_weights.safetensors`,
`trainer_state.pt`, `activation_scaler.json`), so that SAELens resumes from it too, and
`progress.json` with the place in the activation stream.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sae_lens.training.sae_trainer import SAETrainer

from gated_plugin.activations import ActivationStream
from gated_plugin.errors import GatedError
from gated_plugin.runs import Run, read_json, write_json

PROGRESS = "progress.json"


def save(run: Run, trainer: SAETrainer[Any, Any], stream: ActivationStream) -> None:
    """Write a checkpoint of this very moment, then delete the one before it."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    final = run.checkpoints / f"step_{trainer.n_training_steps:08d}"
    unfinished = run.checkpoints / f".{final.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    trainer.sae.save_model(unfinished)
    trainer.save_trainer_state(unfinished)
    write_json(unfinished / PROGRESS, {"stream": stream.position()})
    _sync(unfinished)
    if final.exists():
        shutil.rmtree(final)
    unfinished.rename(final)
    for older in sorted(run.checkpoints.iterdir()):
        if older != final:
            shutil.rmtree(older)


def latest(run: Run) -> Path | None:
    """The newest finished checkpoint, if there is one."""
    finished = sorted(run.checkpoints.glob("step_*"))
    return finished[-1] if finished else None


def load(checkpoint: Path, trainer: SAETrainer[Any, Any], stream: ActivationStream) -> None:
    """Put trainer, SAE and stream where `save` found them.

    Raises:
        GatedError: the checkpoint is damaged.
    """
    try:
        trainer.load_trainer_state(checkpoint)
        trainer.sae.load_weights_from_checkpoint(checkpoint)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise GatedError(
            f"The checkpoint {checkpoint} cannot be read ({type(error).__name__}); delete it and "
            "start the run again, or restore it from a copy."
        ) from error
    stream.seek(**read_json(checkpoint / PROGRESS)["stream"])


def delete(run: Run) -> None:
    """Training is over: its checkpoints are no longer of use."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
