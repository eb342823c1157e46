"""How much memory a checkpoint and the trained SAE need to be written, above what training has."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from load_memory import peak, start_of_peak
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig, checkpoints, tensor_files
from gated_plugin.activations import ActivationStream
from gated_plugin.runs import Run

BATCH = 64
BLOCK_BYTES = 1 << 20
"""Smaller than usual, so that it is far from a matrix."""


class Measured(NamedTuple):
    """Bytes."""

    matrix: int
    checkpoint: int
    trained_sae: int


class Noise(ActivationStream):
    def __init__(self, d_in: int) -> None:
        self.d_in = d_in
        self.chunk = self.served = 0

    def __next__(self) -> torch.Tensor:
        self.served += 1
        generator = torch.Generator().manual_seed(self.served)
        return torch.randn(BATCH, self.d_in, generator=generator)


def measured(d_in: int, d_sae: int) -> Measured:
    """Of an SAE that has taken some steps."""
    tensor_files.BLOCK_BYTES = BLOCK_BYTES
    with TemporaryDirectory() as place:
        _written(64, 256, Path(place) / "small")  # what comes once in a process
        return _written(d_in, d_sae, Path(place) / "large")


def measure_in_a_child(answer: Connection, *arguments: int) -> None:
    """`measured`, for a forked process."""
    answer.send(measured(*arguments))


def _written(d_in: int, d_sae: int, folder: Path) -> Measured:
    stream = Noise(d_in)
    trainer = _trainer(d_in, d_sae, stream)
    for _ in range(3):
        trainer.step(next(stream))
        trainer.n_training_steps += 1
    before = start_of_peak()
    checkpoints.save(Run(folder), trainer, stream)
    checkpoint, before = peak() - before, start_of_peak()
    trainer.sae.save_inference_model(folder / "sae")
    return Measured(trainer.sae.W_enc.nbytes, checkpoint, peak() - before)


def _trainer(d_in: int, d_sae: int, stream: Noise) -> SAETrainer[Any, Any]:
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=5.0))
    cfg = SAETrainerConfig(
        total_training_samples=100 * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_end=1e-3,
        adam_beta1=0.0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=cfg, sae=sae, data_provider=stream)
