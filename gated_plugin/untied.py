"""The Gated SAE with two encoders, an ablation of arXiv 2404.16014 (section 5, figure 8).

    f = 1[W_gateᵀ (x − b_dec) + b_gate > 0] ⊙ ReLU(W_magᵀ (x − b_dec) + b_mag)

`W_gate` is called `W_enc`, as SAELens calls an encoder; there is no `r_mag`, because `W_mag` has
norms of its own. Plain SAELens has no such architecture: with this package installed it loads from
disk as `gated_untied`, and it is not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from sae_lens.saes.sae import SAEConfig, TrainCoefficientConfig
from torch import Tensor, nn
from typing_extensions import override

from gated_plugin.architecture import DENSE_PRODUCT, GatedBase, GatedCode, make_feature_major
from gated_plugin.config import PaperTrainingSAEConfig
from gated_plugin.engine.ablated_step import ablated_step
from gated_plugin.engine.step import GatedStep
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.loss import GatedLoss
from gated_plugin.paper_sae import PaperTrainingSAE, gated_terms
from gated_plugin.trainer_hooks.adam import hasten_adam

ARCHITECTURE = "gated_untied"


class UntiedBase(GatedBase):
    """What the inference and the training SAE share; it encodes by dense products alone."""

    W_mag: nn.Parameter
    """Directions of the magnitudes: [d_in, d_sae]."""

    wide_vectors: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")

    @override
    def initialize_weights(self) -> None:
        for name in self.wide_vectors:
            zeros = torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device)
            setattr(self, name, nn.Parameter(zeros))
        super().initialize_weights()
        self.W_mag = nn.Parameter(self.W_enc.data.clone())

    @override
    def engine_serves(self, centred: Tensor) -> bool:
        """Never: the engine's encode takes one product for both paths."""
        return False

    @override
    def gated_code(self, centred: Tensor) -> GatedCode:
        """Features, magnitude and gate pre-activations [..., d_sae] of what the encoder sees."""
        self.engine_choice = DENSE_PRODUCT
        gate_pre = centred @ self.W_enc
        magnitude_pre = self.hook_sae_acts_pre((centred @ self.W_mag + self.b_mag).to(self.dtype))
        closed = gate_pre + self.b_gate <= 0
        features = self.hook_sae_acts_post(torch.relu(magnitude_pre).masked_fill(closed, 0))
        return GatedCode(features, magnitude_pre, gate_pre)

    @override
    def encoder_weights(self) -> EncoderWeights:
        """Of the gate."""
        zeros = torch.zeros_like(self.b_gate)
        return EncoderWeights(self.W_enc, self.b_gate, self.b_gate, zeros)

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        norms = self.fold_and_get_W_dec_norm()
        for parameter in (self.W_mag, self.b_gate, self.b_mag):
            parameter.data.mul_(norms)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self.W_mag.data.mul_(scaling_factor)
        super().fold_activation_norm_scaling_factor(scaling_factor)

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        wide = torch.promote_types(self.W_mag.dtype, whitening_matrix.dtype)
        W_mag = whitening_matrix.to(wide) @ self.W_mag.to(wide)
        if not self.cfg.apply_b_dec_to_input:
            W_gate = whitening_matrix.to(wide) @ self.W_enc.to(wide)
            self.b_gate.data.sub_(mean.to(wide) @ W_gate)
            self.b_mag.data.sub_(mean.to(wide) @ W_mag)
        self.W_mag.data.copy_(W_mag)
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)


@dataclass
class GatedUntiedSAEConfig(SAEConfig):
    """Inference with two encoders."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE


@dataclass
class GatedUntiedTrainingSAEConfig(PaperTrainingSAEConfig):
    """Training with two encoders.

    Raises:
        GatedError: a field has a value that no training could use.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE


class GatedUntiedSAE(UntiedBase):
    """Inference with two encoders."""


class GatedUntiedTrainingSAE(UntiedBase, PaperTrainingSAE):
    """Trains two encoders with the loss of the tied Gated SAE."""

    cfg: GatedUntiedTrainingSAEConfig

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l1": TrainCoefficientConfig(self.cfg.l1_coefficient, self.cfg.l1_warm_up_steps)}

    @override
    def _gated_step(self, x: Tensor, l1: float) -> GatedStep | None:
        make_feature_major(self.W_mag)
        hasten_adam(self.W_mag)
        gate, zeros = self.feature_major_weights(), torch.zeros_like(self.b_mag)
        magnitude = EncoderWeights(self.W_mag, self.b_gate, self.b_mag, zeros)
        centred = self.cfg.apply_b_dec_to_input
        return ablated_step(x, gate, magnitude, self.W_dec, self.b_dec, l1, centred=centred)

    @override
    def terms(self, losses: GatedLoss) -> dict[str, Tensor]:
        return gated_terms(losses)
