"""Small SAEs in every form that loads, as the bytes of their two files."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from gated_plugin import GatedSAEConfig

D_IN, D_SAE = 4, 6
LEGACY = {
    "architecture": "gated",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "model_name": "gpt2-small",
    "hook_point": "blocks.8.hook_resid_pre",
    "normalize_activations": False,
    "dtype": "torch.float32",
    "device": "cpu",
}
"""A cfg.json from before SAELens 6."""


class Files(NamedTuple):
    cfg: str
    weights: bytes


def _weights(dtype: torch.dtype, wide: torch.dtype) -> bytes:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    w_dec = values(D_SAE, D_IN)
    matrices = {
        "W_enc": values(D_IN, D_SAE),
        "W_dec": w_dec / w_dec.norm(dim=1, keepdim=True),
        "b_dec": values(D_IN),
    }
    vectors = {name: values(D_SAE) for name in ("b_gate", "b_mag", "r_mag")}
    return save(
        {
            **{name: tensor.to(dtype) for name, tensor in matrices.items()},
            **{name: tensor.to(wide) for name, tensor in vectors.items()},
        },
        {"format": "pt"},
    )


def _files(dtype: str, wide: str | None = None, **settings: Any) -> Files:
    cfg = GatedSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype=dtype, **settings)
    reshaped = cfg.reshape_activations == "hook_z"
    cfg.metadata.hook_name = "blocks.0.attn.hook_z" if reshaped else "blocks.0.hook_resid_post"
    cfg.metadata.model_from_pretrained_kwargs = {"n_ctx": 128}
    weights = _weights(getattr(torch, dtype), getattr(torch, wide or dtype))
    return Files(json.dumps(cfg.to_dict()), weights)


SOUND = (
    _files("float32"),
    _files("float32", apply_b_dec_to_input=False, normalize_activations="layer_norm"),
    _files("float64", normalize_activations="constant_norm_rescale"),
    _files("bfloat16", "float32"),
    _files("float16"),
    _files("float32", reshape_activations="hook_z"),
    Files(json.dumps(LEGACY), _weights(torch.float32, torch.float32)),
)
