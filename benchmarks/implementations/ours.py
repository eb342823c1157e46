"""Our gated SAE in SAELens' trainer: as it chooses for itself, and forced to one engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from typing_extensions import ParamSpec

from benchmarks.implementations import Coding, Implementation, Training, saelens
from benchmarks.workload import Workload
from gated_plugin.config import GatedTrainingSAEConfig
from gated_plugin.engine.options import use
from gated_plugin.training import GatedTrainingSAE

P = ParamSpec("P")
R = TypeVar("R")


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
    apart = saelens.training(sae, workload)
    return Implementation(
        coding=Coding(
            _forced(lambda: sae.encode(workload.x_BN), impl),
            _forced(sae.decode, impl),
            lambda features: features,
        ),
        training=Training(
            sae,
            apart.optimizer,
            _forced(apart.update, impl),
            _forced(apart.loss, impl),
            _forced(apart.optimize, impl),
        ),
        served=lambda: f"{sae.engine_choice.impl}, screened {sae.engine_choice.screened}",
    )


def _forced(call: Callable[P, R], impl: str) -> Callable[P, R]:
    @wraps(call)
    def forced(*args: P.args, **kwargs: P.kwargs) -> R:
        with use(impl=impl):
            return call(*args, **kwargs)

    return forced
