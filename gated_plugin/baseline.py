"""The baseline of arXiv 2404.16014: a ReLU SAE with an L1 penalty and a unit-norm decoder.

    f = ReLU(W_encᵀ (x − b_dec) + b_enc)        L(x) = ‖x − x̂‖² + λ ‖f‖₁

(Section 2.2, and appendix G for its training.) It is the Gated SAE whose gate and magnitude share
one bias and one scale, without the auxiliary term; so the engine's gated step serves it as it is:
with b_gate = b_mag = b_enc and r_mag = 0, ReLU(π_gate) = f, and a term that is left out of the sum
passes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from sae_lens.saes.sae import SAEConfig
from sae_lens.saes.standard_sae import StandardSAEConfig, StandardTrainingSAE
from torch import Tensor
from typing_extensions import override

from gated_plugin.config import PaperTrainingSAEConfig
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.loss import GatedLoss
from gated_plugin.paper_sae import PaperTrainingSAE


@dataclass
class L1BaselineTrainingSAEConfig(PaperTrainingSAEConfig):
    """Training the paper's baseline; saved for inference as SAELens' "standard".

    Raises:
        GatedError: a field has a value that no training could use.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "l1_baseline"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


def as_gated(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Gated SAE that computes what this baseline computes: both biases b_enc, r_mag 0."""
    weights = dict(weights)
    b_enc = weights.pop("b_enc")
    return {**weights, "b_gate": b_enc, "b_mag": b_enc, "r_mag": torch.zeros_like(b_enc)}


class L1BaselineTrainingSAE(PaperTrainingSAE, StandardTrainingSAE):
    """Trains the paper's baseline as cheaply as the Gated SAE."""

    cfg: L1BaselineTrainingSAEConfig
    wide_vectors: ClassVar[tuple[str, ...]] = ("b_enc",)

    @property
    @override
    def gate_bias(self) -> Tensor:
        return self.b_enc

    @override
    def encoder_weights(self) -> EncoderWeights:
        return EncoderWeights(self.W_enc, self.b_enc, self.b_enc, torch.zeros_like(self.b_enc))

    @override
    def terms(self, losses: GatedLoss) -> dict[str, Tensor]:
        return {"mse_loss": losses.reconstruction, "l1_loss": losses.sparsity}
