"""SAEs made of a random problem, and a training step on them."""

from __future__ import annotations

from typing import TypeVar

import torch
from problems import L1, Problem, problem
from sae_lens.saes.sae import SAE, TrainStepInput, TrainStepOutput
from torch import Tensor

from gated_plugin import GatedSAE, GatedSAEConfig, GatedTrainingSAE, GatedTrainingSAEConfig

WEIGHTS = ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec")
N, M = 123, 507
FEW, MANY = 0.03, 0.3

AnySAE = TypeVar("AnySAE", bound=SAE)


def sparse_problem(share: float = FEW, *, centred: bool = True) -> Problem:
    return problem(252, N, M, share, centred=centred)


def weights_of(p: Problem) -> dict[str, Tensor]:
    return dict(zip(WEIGHTS, (*p.weights, p.W_dec_MN, p.b_dec_N), strict=True))


def inference_sae(share: float = FEW, **fields: object) -> GatedSAE:
    return _filled(GatedSAE(GatedSAEConfig(d_in=N, d_sae=M, **fields)), share)


def training_sae(share: float = FEW, **fields: object) -> GatedTrainingSAE:
    return _filled(GatedTrainingSAE(GatedTrainingSAEConfig(d_in=N, d_sae=M, **fields)), share)


def _filled(sae: AnySAE, share: float) -> AnySAE:
    p = sparse_problem(share, centred=sae.cfg.apply_b_dec_to_input)
    with torch.no_grad():
        for name, value in weights_of(p).items():
            getattr(sae, name).copy_(value)
    return sae


def step(sae: GatedTrainingSAE, x: Tensor) -> TrainStepOutput:
    return sae.training_forward_pass(TrainStepInput(x, {"l1": L1}, None, 0, False))
