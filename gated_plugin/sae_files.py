"""The two files of an SAE as SAELens saves it, written in the memory of one block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from torch import Tensor

from gated_plugin.runs import beside
from gated_plugin.tensor_files import whole, write_tensors


def write_sae(
    folder: Path, state_dict: Mapping[str, Tensor], cfg: dict[str, Any]
) -> tuple[Path, Path]:
    """Write weights and `cfg.json` into a folder, which is made where it is not there.

    safetensors' own writer takes contiguous tensors alone, and an encoder whose features lie one
    after another is not.

    Returns:
        The paths of the weights and of `cfg.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, described = folder / SAE_WEIGHTS_FILENAME, folder / SAE_CFG_FILENAME
    with beside(weights) as unfinished:  # what is to be saved may be a map of the old file
        write_tensors(unfinished, {name: whole(tensor) for name, tensor in state_dict.items()})
    described.write_text(json.dumps(cfg), encoding="utf-8")
    return weights, described
