"""The embedded language model, and runs whose SAE has given weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainingSAE

from gated_plugin import GatedTrainingSAE, quickstart
from gated_plugin.recipes import Recipe
from gated_plugin.runner import METADATA
from gated_plugin.runs import Run


@pytest.fixture(scope="module")
def language_model() -> Any:
    return quickstart.language_model()


@pytest.fixture
def made(tiny: Path, tmp_path: Path) -> Callable[..., tuple[Run, Recipe]]:
    """A run whose SAE has the given weights and otherwise zeros."""

    def make(*overrides: str, **weights: torch.Tensor) -> tuple[Run, Recipe]:
        recipe = Recipe.load(tiny, ["sae.normalize_activations=none", *overrides])
        cfg = recipe.runner_config()
        for name in METADATA:
            setattr(cfg.sae.metadata, name, getattr(cfg, name))
        sae = TrainingSAE.from_dict(cfg.sae.to_dict())
        assert isinstance(sae, GatedTrainingSAE)
        sae.load_state_dict(
            {n: weights.get(n, torch.zeros(t.shape)) for n, t in sae.state_dict().items()}
        )
        run = Run(tmp_path)
        run.sae.mkdir(exist_ok=True)
        sae.save_inference_model(run.sae)
        return run, recipe

    return make
