"""Checkpoints that a kill cannot spoil: written beside, synced, renamed; the last good one stays.

A checkpoint is a folder of SAELens' own files (`cfg.json`, `sae_weights.safetensors`,
`trainer_state.pt`, `activation_scaler.json`), so that SAELens resumes from it too, with
`progress.json`, the place in the activation stream, and torch's random states.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from gated_plugin import trainer_state
from gated_plugin.activations import ActivationStream
from gated_plugin.architecture import make_feature_major
from gated_plugin.errors import GatedError
from gated_plugin.runs import Run, folder_beside, read_json, write_json
from gated_plugin.tensor_files import Stream, whole, write_tensors

PROGRESS = "progress.json"
RANDOM_STATES = "random_states.safetensors"


def save(run: Run, trainer: SAETrainer[Any, Any], stream: ActivationStream) -> None:
    """Write a checkpoint of this very moment, then delete the one before it.

    Raises:
        GatedError: it could not be written; the one before it is still there.
    """
    final = run.checkpoints / f"step_{trainer.n_training_steps:08d}"
    if final.exists():
        return
    what = f"The checkpoint of step {trainer.n_training_steps}"
    with run.writing(what), folder_beside(final) as unfinished:
        trainer.sae.save_model(unfinished)
        trainer_state.save(trainer, unfinished)
        write_tensors(unfinished / RANDOM_STATES, _random_states())
        progress = {"stream": stream.position(), "feature_major": _feature_major(trainer.sae)}
        write_json(unfinished / PROGRESS, progress)
    for older in run.checkpoints.iterdir():
        if older != final:
            shutil.rmtree(older, ignore_errors=True)


def latest(run: Run) -> Path | None:
    """The newest finished checkpoint, if there is one."""
    finished = sorted(run.checkpoints.glob("step_*"))
    return finished[-1] if finished else None


def load(checkpoint: Path, trainer: SAETrainer[Any, Any], stream: ActivationStream) -> None:
    """Put trainer, SAE, stream and torch's random generators where `save` found them.

    Raises:
        GatedError: the checkpoint is damaged.
    """
    try:
        progress = read_json(checkpoint / PROGRESS)
        for name in progress.get("feature_major", ()):
            make_feature_major(trainer.sae.get_parameter(name))
        trainer.sae.load_weights_from_checkpoint(checkpoint)
        trainer_state.load(trainer, checkpoint)
        random_states = load_file(checkpoint / RANDOM_STATES)
        stream.seek(**progress["stream"])
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise GatedError(
            f"The checkpoint {checkpoint} cannot be read ({_reason(error)}); restore it from a copy, "
            "or delete that folder and give the same command again, which starts anew."
        ) from error
    torch.set_rng_state(random_states.pop("cpu"))
    torch.cuda.set_rng_state_all([random_states[name] for name in sorted(random_states)])


def _reason(error: Exception) -> str:
    """Its first line, without a full stop; its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def delete(run: Run) -> None:
    """Training is over: its checkpoints are no longer of use."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _feature_major(sae: TrainingSAE[Any]) -> list[str]:
    """Parameters whose columns lie one after another: a product's rounding depends on it."""
    return [name for name, weight in sae.named_parameters() if not weight.is_contiguous()]


def _random_states() -> dict[str, Stream]:
    of_gpus = {f"cuda{i:03d}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    states = {"cpu": torch.get_rng_state(), **of_gpus}
    return {name: whole(state) for name, state in states.items()}
