"""SAELens' built-in gated training, unchanged, under a name of its own: to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import SAEConfig
from typing_extensions import override


@dataclass
class SAELensGatedTrainingSAEConfig(saelens.GatedTrainingSAEConfig):
    """Fields, defaults and training of SAELens' own `gated`, as which it is saved for inference."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "saelens_gated"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return saelens.GatedSAEConfig
