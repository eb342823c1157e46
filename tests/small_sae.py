"""A small SAE on disk, and the sentence with which it is not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gated_plugin
from gated_plugin import GatedSAE, GatedSAEConfig
from gated_plugin.errors import GatedError

D_IN, D_SAE = 16, 40


def make_sae(folder: Path, dtype: str = "float32", **settings: Any) -> Path:
    generator = torch.Generator().manual_seed(0)
    sae = GatedSAE(GatedSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype=dtype, **settings))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    sae.save_model(folder)
    return folder


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(GatedError) as caught:
        gated_plugin.load(*arguments, **options)
    said = str(caught.value)
    assert said.isprintable()
    assert "; " in said
    assert said.endswith(".")
    assert len(said) < 600
    return said
