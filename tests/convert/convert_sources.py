"""Gated dictionaries in the layouts of others, and their formula written down once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

D_IN, D_SAE = 12, 40
Weights = dict[str, Tensor]
LIBRARY_NAMES = {
    "b_dec": "decoder_bias",
    "b_gate": "gate_bias",
    "b_mag": "mag_bias",
    "r_mag": "r_mag",
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight",
}
TRAINER = {
    "dict_class": "GatedAutoEncoder",
    "trainer_class": "GatedSAETrainer",
    "activation_dim": D_IN,
    "dict_size": D_SAE,
    "layer": 8,
    "lm_name": "EleutherAI/pythia-160m-deduped",
    "submodule_name": "resid_post_layer_8",
}


def random_weights(d_in: int = D_IN, d_sae: int = D_SAE, **given: Tensor) -> Weights:
    """Float32, by SAELens' names, decoder norms free; those `given` as they are."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    found = {
        "W_enc": normal(d_in, d_sae),
        "W_dec": normal(d_sae, d_in),
        "b_dec": normal(d_in),
        "b_gate": normal(d_sae) - 1,
        "b_mag": normal(d_sae),
        "r_mag": normal(d_sae) * 0.5,
    }
    return {**found, **given}


def write_saelens(folder: Path, weights: Weights, **cfg: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    d_in, d_sae = weights["W_enc"].shape
    described = {
        "architecture": "gated",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gelu-1l",
            "hook_name": "blocks.0.mlp.hook_post",
            "context_size": 128,
        },
        **cfg,
    }
    (folder / "cfg.json").write_text(json.dumps(described))
    return folder


def library_state(weights: Weights) -> Weights:
    """As dictionary_learning keeps it; its encoder began as the decoder's transpose."""
    state = {LIBRARY_NAMES[name]: tensor for name, tensor in weights.items()}
    state["encoder.weight"] = weights["W_enc"].T
    state["decoder.weight"] = weights["W_dec"].T.contiguous()
    return state


def write_library(folder: Path, state: Any, **trainer: Any) -> Path:
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    described = {"trainer": {**TRAINER, **trainer}, "buffer": {"ctx_len": 1024}}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def write_activations(path: Path, x: Tensor) -> Path:
    save_file({"activations": x}, path)
    return path


def truth(weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features, with unit decoder rows, and reconstructions, by the paper's formula in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    pre = (x.double() - w["b_dec"]) @ w["W_enc"]
    features = (pre * w["r_mag"].exp() + w["b_mag"]).relu() * (pre + w["b_gate"] > 0)
    return features * w["W_dec"].norm(dim=1), features @ w["W_dec"] + w["b_dec"]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
