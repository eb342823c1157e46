"""SAELens' own training SAEs, in SAELens' own trainer; neither is changed by our plugin.

`saelens[tf32]` is its gated SAE where torch may round the operands of float32 products to TF32,
`saelens[autocast]` with `autocast=True` in its configuration: products in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes import gated_sae, jumprelu_sae, topk_sae
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.implementations import Coding, Implementation, Training, within
from benchmarks.units import tf32
from benchmarks.workload import LEARNING_RATE, Case, Workload


def build(name: str, workload: Workload) -> Implementation:
    """SAELens' gated, TopK or JumpReLU SAE with the workload's weights."""
    architecture, _, precision = name.rstrip("]").partition("[")
    sae = _ARCHITECTURES[architecture](workload)
    autocast = precision == "autocast"
    coding = Coding(lambda: sae.encode(workload.x_BN), sae.decode, _activations)
    implementation = Implementation(coding=coding)
    if autocast:
        device = torch.device(workload.case.device).type
        implementation = within(lambda: torch.autocast(device, torch.bfloat16), implementation)
    implementation = replace(implementation, training=training(sae, workload, autocast=autocast))
    if precision == "tf32":
        return within(lambda: tf32(True), implementation)
    return implementation


def sizes(case: Case) -> dict[str, Any]:
    """What the configuration of every architecture takes."""
    return {"d_in": case.d_in, "d_sae": case.d_sae, "dtype": "float32", "device": case.device}


@torch.no_grad()
def fill(sae: TrainingSAE[Any], workload: Workload, **thresholds: float) -> None:
    """Copy the shared weights in, and set vectors [M] to one number each."""
    sae.W_dec.copy_(workload.W_dec_MN)
    sae.W_enc.copy_(workload.W_dec_MN.T)
    for name, value in thresholds.items():
        getattr(sae, name).fill_(value)


def fill_gated(sae: TrainingSAE[Any], workload: Workload) -> None:
    """`fill` for a gated SAE, SAELens' or ours."""
    fill(sae, workload, b_gate=-workload.threshold, b_mag=-workload.threshold / 2)


def training(sae: TrainingSAE[Any], workload: Workload, *, autocast: bool = False) -> Training:
    """`SAETrainer.step`, and its parts: what is left of it is SAELens' statistics."""
    case, batch = workload.case, workload.x_BN
    config = SAETrainerConfig(
        total_training_samples=case.rows,
        train_batch_size_samples=case.rows,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
        adam_beta1=case.beta1,
        device=case.device,
        autocast=autocast,
    )
    trainer: SAETrainer[Any, Any] = SAETrainer(config, sae, data_provider=iter(()))

    def loss() -> Tensor:
        step_input = TrainStepInput(
            sae_in=batch,
            coefficients=trainer.get_coefficients(),
            dead_neuron_mask=trainer.dead_neurons,
            n_training_steps=trainer.n_training_steps,
            is_logging_step=False,
        )
        with trainer.autocast_if_enabled:
            return sae.training_forward_pass(step_input).loss

    def optimize() -> None:
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return Training(
        sae, trainer.optimizer, lambda: trainer.step(batch), loss, Tensor.backward, optimize
    )


def _gated(workload: Workload) -> TrainingSAE[Any]:
    sae = gated_sae.GatedTrainingSAE(gated_sae.GatedTrainingSAEConfig(**sizes(workload.case)))
    fill_gated(sae, workload)
    return sae


def _topk(workload: Workload, **settings: bool) -> TrainingSAE[Any]:
    config = topk_sae.TopKTrainingSAEConfig(**sizes(workload.case), k=workload.case.l0, **settings)
    sae = topk_sae.TopKTrainingSAE(config)
    fill(sae, workload, b_enc=0.0)
    return sae


def _jumprelu(workload: Workload) -> TrainingSAE[Any]:
    config = jumprelu_sae.JumpReLUTrainingSAEConfig(**sizes(workload.case))
    sae = jumprelu_sae.JumpReLUTrainingSAE(config)
    fill(sae, workload, b_enc=0.0, threshold=workload.threshold)
    return sae


_ARCHITECTURES: dict[str, Callable[[Workload], TrainingSAE[Any]]] = {
    "saelens": _gated,
    "saelens_topk": _topk,
    # With sparse activations, rescaling (SAELens' default) has no backward pass on a CPU.
    "saelens_topk_sparse": partial(
        _topk, use_sparse_activations=True, rescale_acts_by_decoder_norm=False
    ),
    "saelens_jumprelu": _jumprelu,
}


def _activations(features: Tensor) -> Tensor:
    return features.coalesce().values() if features.is_sparse else features
