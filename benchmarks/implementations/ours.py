"""Our gated SAE in SAELens' trainer: as it chooses for itself, and forced to one engine."""

from __future__ import annotations

from benchmarks.implementations import Coding, Implementation, saelens, within
from benchmarks.workload import Workload
from gated_plugin.config import GatedTrainingSAEConfig
from gated_plugin.engine.options import use
from gated_plugin.training import GatedTrainingSAE


def build(name: str, workload: Workload) -> Implementation:
    """`gated_plugin`, `gated_plugin:ENGINE`, or `gated_plugin:encode_sparse` without training."""
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(**saelens.sizes(workload.case)))
    saelens.fill_gated(sae, workload)
    if name == "gated_plugin:encode_sparse":
        coding = Coding(
            lambda: sae.encode_sparse(workload.x_BN), sae.decode, lambda codes: codes.values
        )
        return Implementation(coding=coding)
    impl = name.partition(":")[2] or "auto"
    implementation = Implementation(
        coding=Coding(lambda: sae.encode(workload.x_BN), sae.decode, lambda features: features),
        training=saelens.training(sae, workload),
        served=lambda: f"{sae.engine_choice.impl}, screened {sae.engine_choice.screened}",
    )
    return within(lambda: use(impl=impl), implementation)
