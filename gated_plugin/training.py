"""The Gated SAE in training: SAELens' class, with the paper's loss and a unit-norm decoder."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from sae_lens.saes import gated_sae as saelens
from torch import Tensor
from typing_extensions import override

from gated_plugin.config import GatedTrainingSAEConfig
from gated_plugin.loss import GatedLoss
from gated_plugin.paper_sae import PaperTrainingSAE, gated_terms

NOTICE = (
    "Training architecture='gated' with gated_plugin: unlike SAELens' built-in gated, the auxiliary "
    "loss leaves the decoder alone and decoder rows stay at norm 1, as in arXiv 2404.16014; "
    "for the built-in one call gated_plugin.unregister(), or set GATED_PLUGIN_AUTOLOAD=0 and do not "
    "import gated_plugin."
)

logger = logging.getLogger("gated_plugin")
_noticed: list[str] = []


class GatedTrainingSAE(PaperTrainingSAE, saelens.GatedTrainingSAE):
    """Trains with the loss of arXiv 2404.16014, or one of its ablations."""

    cfg: GatedTrainingSAEConfig

    def __init__(self, cfg: saelens.GatedTrainingSAEConfig, use_error_term: bool = False) -> None:
        if not isinstance(cfg, GatedTrainingSAEConfig):
            cfg = GatedTrainingSAEConfig.from_dict(cfg.to_dict())
        super().__init__(cfg, use_error_term)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.magnitude_scale == "one":
            self.r_mag.requires_grad_(False)
        if self.cfg.trained == "magnitude":
            for parameter in (self.W_enc, self.b_gate, self.W_dec, self.b_dec):
                parameter.requires_grad_(False)

    @property
    @override
    def auxiliary_is_live(self) -> bool:
        return self.cfg.auxiliary_decoder == "live"

    @property
    @override
    def decoder_is_free(self) -> bool:
        return self.cfg.decoder_norm == "free"

    @override
    def terms(self, losses: GatedLoss) -> dict[str, Tensor]:
        if self.cfg.trained == "magnitude":
            return {"mse_loss": losses.reconstruction}
        return gated_terms(losses)

    @override
    @torch.compiler.disable
    def _before_step(self) -> None:
        if not (_noticed or self.auxiliary_is_live or self.decoder_is_free):
            _noticed.append(NOTICE)
            logger.warning(NOTICE)
        super()._before_step()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """A free decoder norm is folded into the encoder: what is published has norm 1."""
        if self.decoder_is_free:
            folded = copy.deepcopy(self)
            folded.fold_W_dec_norm()
            state_dict.update(folded.state_dict())
        super().process_state_dict_for_saving_inference(state_dict)
