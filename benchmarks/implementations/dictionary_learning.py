"""saprmarks/dictionary_learning: its gated autoencoder in its own trainer.

Its Adam has β1 = 0 and does not clip; its update norms the decoder's columns, as the paper does.
"""

from __future__ import annotations

import torch
from dictionary_learning.trainers.gdm import GatedSAETrainer

from benchmarks.implementations import Coding, Implementation, Training
from benchmarks.workload import LEARNING_RATE, Workload

STEP = 1


def build(_name: str, workload: Workload) -> Implementation:
    """The trainer past its warm-up, with the workload's weights."""
    case, batch = workload.case, workload.x_BN
    trainer = GatedSAETrainer(
        steps=1_000_000,
        activation_dim=case.d_in,
        dict_size=case.d_sae,
        layer=0,
        lm_name="none",
        lr=LEARNING_RATE,
        warmup_steps=0,
        sparsity_warmup_steps=None,
        device=case.device,
    )
    autoencoder = trainer.ae
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(workload.W_dec_MN)
        autoencoder.decoder.weight.copy_(workload.W_dec_MN.T)
        autoencoder.gate_bias.fill_(-workload.threshold)
        autoencoder.mag_bias.fill_(-workload.threshold / 2)

    def optimize() -> None:
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return Implementation(
        coding=Coding(
            lambda: autoencoder.encode(batch), autoencoder.decode, lambda features: features
        ),
        training=Training(
            autoencoder,
            trainer.optimizer,
            lambda: trainer.update(STEP, batch),
            lambda: trainer.loss(batch, STEP),
            torch.Tensor.backward,
            optimize,
        ),
    )
