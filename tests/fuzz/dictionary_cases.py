"""Mutated cfg.json and safetensors files: the SAE is loaded as others read the file, or refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from hostile_tensors import mutated_tensors
from mutations import blindly, mutated_json
from sae_lens import SAE
from safetensors.torch import load, save
from sound_dictionaries import D_IN, D_SAE, SOUND

from gated_plugin import GatedSAE, loading, tensor_files
from gated_plugin.dictionaries import CFG, WEIGHTS, Dictionary, read_rows

HERE = Path()
UNDERSTOOD = ("none", "layer_norm", "constant_norm_rescale")
"""Normalisations that need nothing but the activations."""
tensor_files.BLOCK_BYTES = 40  # so that these tensors have several blocks


def cfg(random: Random) -> None:
    """A mutated cfg.json beside sound weights."""
    files = random.choice(SOUND)
    text = mutated_json(random, files.cfg).encode(errors="surrogatepass")
    if random.random() < 0.3:
        text = blindly(random, text, random.choice(SOUND).cfg.encode())
    (HERE / CFG).write_bytes(text)
    (HERE / WEIGHTS).write_bytes(files.weights)
    sae = _loaded()
    _require_stored(sae, files.weights, sae.dtype)
    said = json.loads(text)
    assert (said["d_in"], said["d_sae"]) == (D_IN, D_SAE)
    assert sae.cfg.apply_b_dec_to_input is said.get("apply_b_dec_to_input", True)
    assert sae.cfg.normalize_activations == (said.get("normalize_activations") or "none")
    assert sae.cfg.normalize_activations in UNDERSTOOD
    assert str(sae.dtype) == f"torch.{said.get('dtype', 'float32').removeprefix('torch.')}"
    _require_same_as_saelens(sae)
    if sae.cfg.reshape_activations == "none":
        _require_true_features(sae)


def weights(random: Random) -> None:
    """A mutated safetensors file beside a sound cfg.json."""
    files = random.choice(SOUND)
    data = mutated_tensors(random, files.weights, random.choice(SOUND).weights)
    (HERE / CFG).write_text(files.cfg)
    (HERE / WEIGHTS).write_bytes(data)
    sae = loading.load(HERE)
    assert all(tensor.isfinite().all() for tensor in sae.state_dict().values())
    _require_stored(sae, data, sae.dtype)
    _loaded()
    wanted = random.choice([torch.float32, torch.bfloat16])
    _require_stored(loading.load(HERE, dtype=wanted), data, wanted)


def siblings(random: Random) -> None:
    """A mutated safetensors file of activations."""
    path = HERE / "activations.safetensors"
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(random.randrange(100)))
    data = mutated_tensors(random, save({"activations": x}), SOUND[0].weights)
    path.write_bytes(data)
    found = read_rows(path, "activations", (None, D_IN), 64)
    assert found.isfinite().all()
    assert torch.equal(found, load(data)["activations"])


def _loaded() -> GatedSAE:
    dictionary = Dictionary.open(HERE)
    dictionary.require_sound()
    sae = loading.read(dictionary)
    sae.cfg.to_dict()
    return sae


def _require_stored(sae: GatedSAE, data: bytes, dtype: torch.dtype) -> None:
    """The tensors are those that safetensors itself reads, bit for bit."""
    for name, tensor in load(data).items():
        kind = dtype if name not in loading.GATE_VECTORS else getattr(sae, name).dtype
        assert kind.itemsize >= dtype.itemsize
        assert _bits(getattr(sae, name)) == _bits(tensor.to(kind)), name


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def _require_same_as_saelens(sae: GatedSAE) -> None:
    theirs = None
    with contextlib.suppress(Exception):  # it is not SAELens that is tested
        theirs = SAE.load_from_disk(HERE)
    if theirs is not None:
        assert _settings(theirs) == _settings(sae)


def _settings(sae: Any) -> str:
    described = {**sae.cfg.to_dict(), "device": "cpu"}
    described["dtype"] = described["dtype"].removeprefix("torch.")
    return repr(described)  # which is equal for NaN, too


def _require_true_features(sae: GatedSAE) -> None:
    """f = 1[π + b_gate > 0] ⊙ ReLU(exp(r_mag) ⊙ π + b_mag) with π = W_encᵀ (x − b_dec), by hand."""
    x = torch.linspace(-2, 2, 3 * D_IN).view(3, D_IN).cos()
    p = {name: tensor.double() for name, tensor in sae.state_dict().items()}
    centred = x.to(sae.dtype).double()
    if sae.cfg.normalize_activations == "layer_norm":
        centred = centred - centred.mean(1, keepdim=True)
        centred = centred / (centred.std(1, keepdim=True) + 1e-5)
    if sae.cfg.normalize_activations == "constant_norm_rescale":
        centred = centred * D_IN**0.5 / centred.norm(dim=1, keepdim=True)
    pi = (centred - p["b_dec"] * sae.cfg.apply_b_dec_to_input) @ p["W_enc"]
    features = (pi + p["b_gate"] > 0) * (p["r_mag"].exp() * pi + p["b_mag"]).relu()
    if sae.dtype.itemsize >= 4:  # in a half type a gate may flip
        torch.testing.assert_close(sae.encode(x).double(), features, rtol=1e-4, atol=1e-4)
    assert features.shape == (3, D_SAE)
